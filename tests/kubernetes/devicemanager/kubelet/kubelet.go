// Package kubelet is the part of the kubelet that device plugins meet, made of Kubernetes' own code: device manager,
// topology manager, plugin watcher and pod resources server, on a root folder of the caller's choice.
//
// It runs in a process of its own, so that it can be killed, and so that a panic in the device manager is what it is on
// a node: a kubelet that crashes. [Main] is that process; [Start] starts it and speaks to it over its standard input and
// output. What surrounds the device manager in the kubelet (which pods there are, whether sources are ready, which
// containers run) is here, and follows pkg/kubelet/kubelet.go.
package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	_ "unsafe" // for go:linkname

	cadvisor "github.com/google/cadvisor/info/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
	"k8s.io/kubernetes/pkg/kubelet/apis/podresources"
	"k8s.io/kubernetes/pkg/kubelet/cm/containermap"
	"k8s.io/kubernetes/pkg/kubelet/cm/devicemanager"
	"k8s.io/kubernetes/pkg/kubelet/cm/topologymanager"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
	"k8s.io/kubernetes/pkg/kubelet/pluginmanager"
	"k8s.io/kubernetes/pkg/kubelet/server"
	"k8s.io/kubernetes/pkg/kubelet/util"
)

// newManagerImpl is what devicemanager.NewManagerImpl calls with the fixed path /var/lib/kubelet/device-plugins. The
// exported function would make the tests remove the sockets of a kubelet that runs on this machine.
//
//go:linkname newManagerImpl k8s.io/kubernetes/pkg/kubelet/cm/devicemanager.newManagerImpl
func newManagerImpl(
	logger klog.Logger,
	socketPath string,
	topology []cadvisor.Node,
	store topologymanager.Store,
) (*devicemanager.ManagerImpl, error)

// kubelet answers the calls of [Client].
type kubelet struct {
	devices  *devicemanager.ManagerImpl
	topology topologymanager.Manager
	pods     *pods
	stop     chan struct{}
}

// Main runs a kubelet as the text of a [Config] says, until standard input ends.
func Main(config string) error {
	var options Config
	if err := json.Unmarshal([]byte(config), &options); err != nil {
		return fmt.Errorf("the configuration: %w", err)
	}
	kubelet, err := start(options)
	if err != nil {
		return err
	}
	service := rpc.NewServer()
	if err := service.RegisterName("Kubelet", &Service{kubelet}); err != nil {
		return err
	}
	service.ServeCodec(jsonrpc.NewServerCodec(standardIO{os.Stdin, os.Stdout}))
	return nil
}

func start(options Config) (*kubelet, error) {
	ctx := context.Background()
	logger := klog.Background()
	folder := filepath.Join(options.Root, "device-plugins")
	for _, folder := range []string{folder, filepath.Join(options.Root, "pod-resources")} {
		if err := os.MkdirAll(folder, 0o750); err != nil {
			return nil, err
		}
	}
	machine := options.machine()
	topology, err := topologymanager.NewManager(machine, options.policy(), topologymanager.ContainerTopologyScope, nil)
	if err != nil {
		return nil, err
	}
	devices, err := newManagerImpl(logger, filepath.Join(folder, "kubelet.sock"), machine, topology)
	if err != nil {
		return nil, err
	}
	topology.AddHintProvider(logger, devices)

	kubelet := &kubelet{devices: devices, topology: topology, pods: newPods(), stop: make(chan struct{})}
	containers, running := containermap.NewContainerMap(), sets.New[string]()
	for _, known := range options.Pods {
		for _, container := range known.Running {
			id := known.Pod.UID + "/" + container
			containers.Add(known.Pod.UID, container, id)
			running.Insert(id)
		}
	}
	if err := devices.Start(logger, kubelet.pods.GetActivePods, kubelet.pods, containers, running); err != nil {
		return nil, err
	}

	// kubelet.go starts the plugin manager after the container manager, and the pod resources server beside both.
	plugins := pluginmanager.NewPluginManager(filepath.Join(options.Root, "plugins_registry"), record.NewFakeRecorder(100))
	plugins.AddHandler(registration.DevicePlugin, devices.GetWatcherHandler())
	go plugins.Run(ctx, kubelet.pods, kubelet.stop)
	endpoint, err := util.LocalEndpoint(filepath.Join(options.Root, "pod-resources"), podresources.Socket)
	if err != nil {
		return nil, err
	}
	go server.ListenAndServePodResources(ctx, endpoint, podresources.PodResourcesProviders{
		Pods: kubelet.pods, Devices: provider{devices}, Cpus: provider{}, Memory: provider{}, DynamicResources: provider{},
	})

	// The pods that the API server knows come before its source counts as ready.
	for _, known := range options.Pods {
		kubelet.admit(known.Pod)
	}
	kubelet.pods.ready.Store(true)
	return kubelet, nil
}

// admit is HandlePodAdditions: the pod counts while it is admitted, and not any more when it is refused.
func (k *kubelet) admit(pod Pod) Admission {
	object := pod.object()
	k.pods.add(object)
	result := k.topology.Admit(&lifecycle.PodAdmitAttributes{Pod: object, OtherPods: k.pods.GetActivePods()})
	if !result.Admit {
		k.pods.end(pod.UID)
	}
	return Admission{Admitted: result.Admit, Reason: result.Reason, Message: result.Message}
}

// Service is what the process answers; net/rpc wants it and its methods exported.
type Service struct{ kubelet *kubelet }

// Admit admits a pod.
func (s *Service) Admit(pod Pod, answer *Admission) error {
	*answer = s.kubelet.admit(pod)
	return nil
}

// Options says what a container gets when it starts.
func (s *Service) Options(which Which, answer *Options) error {
	pod, known := s.kubelet.pods.get(which.UID)
	if !known {
		return fmt.Errorf("no pod %s", which.UID)
	}
	all := slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
	index := slices.IndexFunc(all, func(container v1.Container) bool { return container.Name == which.Container })
	if index < 0 {
		return fmt.Errorf("no container %s", which.Container)
	}
	options, err := s.kubelet.devices.GetDeviceRunContainerOptions(context.Background(), pod, &all[index])
	if err != nil {
		return err
	}
	answer.Env = map[string]string{}
	if options != nil {
		for _, variable := range options.Envs {
			answer.Env[variable.Name] = variable.Value
		}
	}
	return nil
}

// End marks a pod as ended: it stays known, and its devices are free.
func (s *Service) End(uid string, _ *struct{}) error {
	s.kubelet.pods.end(uid)
	return nil
}

// Remove forgets a pod.
func (s *Service) Remove(uid string, _ *struct{}) error {
	s.kubelet.pods.remove(uid)
	return nil
}

// Capacity says what the node status would say.
func (s *Service) Capacity(_ struct{}, answer *map[string]Capacity) error {
	*answer = map[string]Capacity{}
	capacity, allocatable, _ := s.kubelet.devices.GetCapacity()
	for name, quantity := range capacity {
		free := allocatable[name]
		(*answer)[string(name)] = Capacity{quantity.Value(), free.Value()}
	}
	return nil
}

// Stop stops the device manager as far as the kubelet can.
func (s *Service) Stop(_ struct{}, _ *struct{}) error {
	close(s.kubelet.stop)
	return s.kubelet.devices.Stop(klog.Background())
}

// pods plays the pod manager.
type pods struct {
	mutex sync.Mutex
	known map[string]*v1.Pod
	ended map[string]bool
	ready atomic.Bool
}

func newPods() *pods { return &pods{known: map[string]*v1.Pod{}, ended: map[string]bool{}} }

func (p *pods) add(pod *v1.Pod) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.known[string(pod.UID)] = pod
}

func (p *pods) end(uid string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.ended[uid] = true
}

func (p *pods) remove(uid string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	delete(p.known, uid)
	delete(p.ended, uid)
}

func (p *pods) get(uid string) (*v1.Pod, bool) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	pod, known := p.known[uid]
	return pod, known
}

func (p *pods) AddSource(string) {}

func (p *pods) AllReady() bool { return p.ready.Load() }

func (p *pods) GetActivePods() []*v1.Pod {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	var active []*v1.Pod
	for uid, pod := range p.known {
		if !p.ended[uid] {
			active = append(active, pod)
		}
	}
	return active
}

func (p *pods) GetPods() []*v1.Pod {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	var all []*v1.Pod
	for _, pod := range p.known {
		all = append(all, pod)
	}
	return all
}

func (p *pods) GetPodByName(namespace, name string) (*v1.Pod, bool) {
	for _, pod := range p.GetActivePods() {
		if pod.Namespace == namespace && pod.Name == name {
			return pod, true
		}
	}
	return nil, false
}

// provider is the container manager as the pod resources server sees it.
type provider struct{ devices *devicemanager.ManagerImpl }

func (p provider) UpdateAllocatedDevices() { p.devices.UpdateAllocatedDevices() }

func (p provider) GetDevices(uid, container string) []*podresourcesapi.ContainerDevices {
	return describe(p.devices.GetDevices(uid, container))
}

func (p provider) GetAllocatableDevices() []*podresourcesapi.ContainerDevices {
	return describe(p.devices.GetAllocatableDevices())
}

func (provider) GetCPUs(string, string) []int64 { return []int64{} }

func (provider) GetAllocatableCPUs() []int64 { return []int64{} }

func (provider) GetMemory(string, string) []*podresourcesapi.ContainerMemory {
	return []*podresourcesapi.ContainerMemory{}
}

func (provider) GetAllocatableMemory() []*podresourcesapi.ContainerMemory {
	return []*podresourcesapi.ContainerMemory{}
}

func (provider) GetDynamicResources(*v1.Pod, *v1.Container) []*podresourcesapi.DynamicResource {
	return []*podresourcesapi.DynamicResource{}
}

// describe is containerDevicesFromResourceDeviceInstances of pkg/kubelet/cm/container_manager.go.
func describe(resources devicemanager.ResourceDeviceInstances) []*podresourcesapi.ContainerDevices {
	var all []*podresourcesapi.ContainerDevices
	for resource, devices := range resources {
		for id, device := range devices {
			topology := device.GetTopology()
			if topology == nil {
				all = append(all, &podresourcesapi.ContainerDevices{ResourceName: resource, DeviceIds: []string{id}})
				continue
			}
			for _, node := range topology.GetNodes() {
				all = append(all, &podresourcesapi.ContainerDevices{
					ResourceName: resource,
					DeviceIds:    []string{id},
					Topology:     &podresourcesapi.TopologyInfo{Nodes: []*podresourcesapi.NUMANode{{ID: node.GetID()}}},
				})
			}
		}
	}
	return all
}

// standardIO is standard input and output as one stream.
type standardIO struct {
	io.ReadCloser
	io.Writer
}
