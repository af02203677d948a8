package devicemanager

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// nicsOf is the resource of plugins of the tests.
const nicsOf = "example.com/nic"

// plugin is a device plugin that writes down all that it is asked.
type plugin struct {
	deviceplugin.UnimplementedDevicePluginServer
	registration.UnimplementedRegistrationServer
	name   string
	server *grpc.Server
	// served is closed when the server has ended.
	served chan struct{}

	mutex   sync.Mutex
	changed *sync.Cond
	calls   []string
	devices []*deviceplugin.Device
	// round counts the lists; over counts the times that the streams were told to end.
	round, over int
	// open streams of ListAndWatch.
	open int
	how  character
}

// character is how a plugin is to be.
type character struct {
	// prefers and preStarts are its options.
	prefers, preStarts bool
	// prefer answers GetPreferredAllocation.
	prefer func(available, must []string, size int32) []string
	// fail are methods that fail, with what the plugin says.
	fail map[string]string
	// gate holds Allocate up until it is closed.
	gate chan struct{}
	// env is added to what containers are given.
	env map[string]string
	// info makes it a plugin that is found in plugins_registry.
	info *registration.PluginInfo
}

// plug serves a plugin on the socket.
func (s *stage) plug(name, socket string, how character, devices ...*deviceplugin.Device) *plugin {
	s.Helper()
	p := &plugin{name: name, devices: devices, how: how, served: make(chan struct{})}
	p.changed = sync.NewCond(&p.mutex)
	p.server = grpc.NewServer()
	deviceplugin.RegisterDevicePluginServer(p.server, p)
	registration.RegisterRegistrationServer(p.server, p)
	listener, err := net.Listen("unix", socket)
	must(s, err)
	go func() {
		defer close(p.served)
		// It ends when it is told to.
		_ = p.server.Serve(listener)
	}()
	s.Cleanup(p.stop)
	return p
}

// stop ends the plugin as if its process had been killed, but for its socket, which is removed.
func (p *plugin) stop() {
	p.mutex.Lock()
	p.over++
	p.changed.Broadcast()
	p.mutex.Unlock()
	p.server.Stop()
	<-p.served
}

// list sends another list on all streams.
func (p *plugin) list(devices ...*deviceplugin.Device) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.devices = devices
	p.round++
	p.changed.Broadcast()
}

// endStreams ends all streams; the plugin goes on.
func (p *plugin) endStreams() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.over++
	p.changed.Broadcast()
}

func (p *plugin) streams() int {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return p.open
}

func (p *plugin) record(ctx context.Context, method, request string) error {
	authority := strings.Join(metadata.ValueFromIncomingContext(ctx, ":authority"), ",")
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.calls = append(p.calls, strings.TrimSpace(fmt.Sprintf("%s (%s) %s", method, authority, request)))
	p.changed.Broadcast()
	if reason, fails := p.how.fail[method]; fails {
		return status.Error(codes.Internal, reason)
	}
	return nil
}

func (p *plugin) GetDevicePluginOptions(
	ctx context.Context, _ *deviceplugin.Empty,
) (*deviceplugin.DevicePluginOptions, error) {
	return &deviceplugin.DevicePluginOptions{
		PreStartRequired:                p.how.preStarts,
		GetPreferredAllocationAvailable: p.how.prefers,
	}, p.record(ctx, "GetDevicePluginOptions", "")
}

func (p *plugin) ListAndWatch(
	_ *deviceplugin.Empty, stream grpc.ServerStreamingServer[deviceplugin.ListAndWatchResponse],
) error {
	if err := p.record(stream.Context(), "ListAndWatch", ""); err != nil {
		return err
	}
	stop := context.AfterFunc(stream.Context(), func() {
		p.mutex.Lock()
		defer p.mutex.Unlock()
		p.changed.Broadcast()
	})
	defer stop()
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.open++
	defer func() { p.open-- }()
	over := p.over
	for sent := -1; ; {
		if sent != p.round {
			sent = p.round
			devices := p.devices
			p.mutex.Unlock()
			err := stream.Send(&deviceplugin.ListAndWatchResponse{Devices: devices})
			p.mutex.Lock()
			if err != nil {
				return err
			}
			continue
		}
		if over != p.over || stream.Context().Err() != nil {
			return nil
		}
		p.changed.Wait()
	}
}

func (p *plugin) GetPreferredAllocation(
	ctx context.Context, request *deviceplugin.PreferredAllocationRequest,
) (*deviceplugin.PreferredAllocationResponse, error) {
	answer := &deviceplugin.PreferredAllocationResponse{}
	for _, asked := range request.ContainerRequests {
		slices.Sort(asked.AvailableDeviceIDs)
		slices.Sort(asked.MustIncludeDeviceIDs)
		text := fmt.Sprintf("available %v must %v size %d", asked.AvailableDeviceIDs, asked.MustIncludeDeviceIDs, asked.AllocationSize)
		if err := p.record(ctx, "GetPreferredAllocation", text); err != nil {
			return nil, err
		}
		if p.how.prefer != nil {
			ids := p.how.prefer(asked.AvailableDeviceIDs, asked.MustIncludeDeviceIDs, asked.AllocationSize)
			one := &deviceplugin.ContainerPreferredAllocationResponse{DeviceIDs: ids}
			answer.ContainerResponses = append(answer.ContainerResponses, one)
		}
	}
	return answer, nil
}

func (p *plugin) Allocate(
	ctx context.Context, request *deviceplugin.AllocateRequest,
) (*deviceplugin.AllocateResponse, error) {
	answer := &deviceplugin.AllocateResponse{}
	for _, asked := range request.ContainerRequests {
		slices.Sort(asked.DevicesIds)
		if err := p.record(ctx, "Allocate", fmt.Sprint(asked.DevicesIds)); err != nil {
			return nil, err
		}
		if p.how.gate != nil {
			<-p.how.gate
		}
		env := map[string]string{"NICS": strings.Join(asked.DevicesIds, ",")}
		maps.Copy(env, p.how.env)
		answer.ContainerResponses = append(answer.ContainerResponses, &deviceplugin.ContainerAllocateResponse{Envs: env})
	}
	return answer, nil
}

func (p *plugin) PreStartContainer(
	ctx context.Context, request *deviceplugin.PreStartContainerRequest,
) (*deviceplugin.PreStartContainerResponse, error) {
	slices.Sort(request.DevicesIds)
	return &deviceplugin.PreStartContainerResponse{}, p.record(ctx, "PreStartContainer", fmt.Sprint(request.DevicesIds))
}

func (p *plugin) GetInfo(ctx context.Context, _ *registration.InfoRequest) (*registration.PluginInfo, error) {
	if err := p.record(ctx, "GetInfo", ""); err != nil {
		return nil, err
	}
	if p.how.info == nil {
		return nil, status.Error(codes.Unimplemented, "not here")
	}
	return p.how.info, nil
}

func (p *plugin) NotifyRegistrationStatus(
	ctx context.Context, told *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	text := fmt.Sprintf("registered %t %s", told.PluginRegistered, told.Error)
	return &registration.RegistrationStatusResponse{}, p.record(ctx, "NotifyRegistrationStatus", text)
}

// taken are the calls so far.
func (p *plugin) taken() []string {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return slices.Clone(p.calls)
}

// expect waits until the plugin was called this often in all.
func (s *stage) expect(p *plugin, calls int) {
	s.Helper()
	s.eventually("calls of "+p.name, func() string {
		if taken := p.taken(); len(taken) < calls {
			return fmt.Sprintf("%d of %d: %q", len(taken), calls, taken)
		}
		return ""
	})
}

// noteCalls writes the plugin's calls into the transcript.
func (s *stage) noteCalls(p *plugin) {
	for _, call := range p.taken() {
		s.note("plugin %s: %s", p.name, call)
	}
}

// ready is a plugin with these devices, registered, and known to the node.
func (s *stage) ready(name, resource string, how character, devices ...*deviceplugin.Device) *plugin {
	s.Helper()
	p := s.plug(name, s.socket(name+".sock"), how, devices...)
	must(s, s.register(request(name+".sock", resource)))
	s.listed(resource, devices...)
	return p
}

// listed waits until the node has these devices.
func (s *stage) listed(resource string, devices ...*deviceplugin.Device) {
	s.Helper()
	var healthy int64
	for _, device := range devices {
		if device.Health == deviceplugin.Healthy {
			healthy++
		}
	}
	s.capacity(resource, int64(len(devices)), healthy)
}

func request(endpoint, resource string) *deviceplugin.RegisterRequest {
	return &deviceplugin.RegisterRequest{Version: deviceplugin.Version, Endpoint: endpoint, ResourceName: resource}
}

// device is a healthy one; nodes are its NUMA nodes.
func device(id string, nodes ...int64) *deviceplugin.Device {
	device := &deviceplugin.Device{ID: id, Health: deviceplugin.Healthy}
	for _, node := range nodes {
		if device.Topology == nil {
			device.Topology = &deviceplugin.TopologyInfo{}
		}
		device.Topology.Nodes = append(device.Topology.Nodes, &deviceplugin.NUMANode{ID: node})
	}
	return device
}

func ill(id string) *deviceplugin.Device {
	return &deviceplugin.Device{ID: id, Health: deviceplugin.Unhealthy}
}

// touch makes a file that is no socket.
func (s *stage) touch(path string) {
	s.Helper()
	must(s, os.WriteFile(path, nil, 0o644))
}
