package devicemanager

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"virtnet/tests/kubernetes/devicemanager/kubelet"
)

// A Pod and its Containers, as scenarios describe them.
type (
	Pod       = kubelet.Pod
	Container = kubelet.Container
)

// Node is a Kubernetes node as far as devices go. Its methods end the test when the node itself is at fault.
type Node interface {
	// Root is the kubelet's root folder.
	Root() string
	// Capacity is what the Node object says of each extended resource.
	Capacity() map[string]kubelet.Capacity
	// Start binds the pod to the node past the scheduler, and returns when all its containers run, or it was refused.
	Start(pod Pod) Outcome
	// End makes all containers of a pod end for good.
	End(pod Pod)
	// Delete deletes a pod, and returns when the kubelet has forgotten it.
	Delete(pod Pod)
	// Restart stops the kubelet and starts it again. Pods go on.
	Restart()
}

// Outcome is what became of a pod.
type Outcome struct {
	// Refused is empty, or the pod's status.reason and status.message.
	Refused string
	// Env is what each container was given, without what every container has.
	Env map[string]map[string]string
}

func (o Outcome) String() string {
	if o.Refused != "" {
		return "refused: " + o.Refused
	}
	var lines []string
	for _, container := range slices.Sorted(maps.Keys(o.Env)) {
		lines = append(lines, fmt.Sprintf("%s %v", container, o.Env[container]))
	}
	return "runs: " + strings.Join(lines, "; ")
}

// kinds are the nodes that scenarios run on.
var kinds = []struct {
	name  string
	start func(t *testing.T, root string, numaNodes int) Node
}{
	{"kubelet", startReal},
	{"virtsim", startSim},
}

// stage is one run of a scenario.
type stage struct {
	*testing.T
	Node
	transcript []string
	folder     string
	// agents counts the agents that were started.
	agents int
	// pods by name, which the scenario started.
	pods map[string]Pod
}

// scenario runs on both nodes, and what a plugin and a pod can notice must be the same on both.
func scenario(t *testing.T, run func(s *stage)) {
	t.Helper()
	scenarioOn(t, 1, run)
}

// scenarioOn is the same on nodes with so many NUMA nodes, which align devices where there are several.
func scenarioOn(t *testing.T, numaNodes int, run func(s *stage)) {
	t.Helper()
	transcripts := map[string][]string{}
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			s := newStage(t)
			s.Node = kind.start(t, s.root(), numaNodes)
			run(s)
			if !t.Failed() {
				transcripts[kind.name] = s.transcript
			}
		})
	}
	theirs, both := transcripts["kubelet"]
	ours, also := transcripts["virtsim"]
	if both && also {
		compare(t, theirs, ours)
	}
}

func newStage(t *testing.T) *stage {
	// Not t.TempDir: with a test's name in it, the path is too long for a socket.
	folder, err := os.MkdirTemp("", "dm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			if err := os.RemoveAll(folder); err != nil {
				t.Error(err)
			}
			return
		}
		t.Logf("logs are in %s", folder)
	})
	return &stage{T: t, folder: folder, pods: map[string]Pod{}}
}

func (s *stage) root() string { return filepath.Join(s.folder, "kubelet") }

// compare shows the two transcripts side by side where they differ.
func compare(t *testing.T, theirs, ours []string) {
	t.Helper()
	for line := range max(len(theirs), len(ours)) {
		at := func(lines []string) string {
			if line < len(lines) {
				return lines[line]
			}
			return "(nothing)"
		}
		if at(theirs) != at(ours) {
			t.Errorf("differs:\n  kubelet: %s\n  virtsim: %s", at(theirs), at(ours))
		}
	}
}

// note writes into the transcript. What differs from run to run, the node's own folder above all, is left out.
func (s *stage) note(format string, arguments ...any) {
	text := fmt.Sprintf(format, arguments...)
	text = strings.ReplaceAll(text, s.root(), "ROOT")
	text = strings.ReplaceAll(text, strings.ReplaceAll(s.root(), "/", "%2F"), "%ROOT")
	s.Log(text)
	s.transcript = append(s.transcript, text)
}

// eventually asks until there is nothing to complain about. Asking again is no failure, however often.
func (s *stage) eventually(what string, complaint func() string) {
	s.Helper()
	expiry := time.Now().Add(*patience)
	for {
		trouble := complaint()
		if trouble == "" {
			return
		}
		if time.Now().After(expiry) {
			s.Fatalf("%s: %s", what, trouble)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// capacity waits until the resource has this much, and notes it.
func (s *stage) capacity(resource string, capacity, allocatable int64) {
	s.Helper()
	wanted := kubelet.Capacity{Capacity: capacity, Allocatable: allocatable}
	s.eventually("capacity of "+resource, func() string {
		if now := s.Capacity()[resource]; now != wanted {
			return fmt.Sprintf("%+v instead of %+v", now, wanted)
		}
		return ""
	})
	s.note("%s: capacity %d, allocatable %d", resource, capacity, allocatable)
}

// run runs a pod and notes what became of it.
func (s *stage) run(pod Pod) Outcome {
	s.Helper()
	pod.Namespace, pod.UID = "default", "uid-"+pod.Name
	s.pods[pod.Name] = pod
	outcome := s.Start(pod)
	s.note("pod %s %s", pod.Name, outcome)
	return outcome
}

func (s *stage) delete(name string) {
	s.Helper()
	s.Delete(s.pods[name])
	delete(s.pods, name)
	s.note("pod %s deleted", name)
}

// one is a pod with a single container that wants so many devices.
func one(name, resource string, count int64) Pod {
	return Pod{Name: name, Containers: []Container{{Name: "c", Limits: map[string]int64{resource: count}}}}
}

// dial connects to a unix socket. Like tonic's and like Go's own clients of the kubelet, with authority localhost.
func (s *stage) dial(path string) *grpc.ClientConn {
	s.Helper()
	connection, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { connection.Close() })
	return connection
}

// deadline is a context that ends when patience does.
func (s *stage) deadline() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), *patience)
	s.Cleanup(cancel)
	return ctx
}

// socket is a path in device-plugins.
func (s *stage) socket(name string) string { return filepath.Join(s.Root(), "device-plugins", name) }

// register registers as a plugin does, and waits for a kubelet that is not there yet.
func (s *stage) register(request *deviceplugin.RegisterRequest) error {
	s.Helper()
	connection := s.dial(s.socket("kubelet.sock"))
	defer connection.Close()
	client := deviceplugin.NewRegistrationClient(connection)
	_, err := client.Register(s.deadline(), request, grpc.WaitForReady(true))
	return err
}

// podResources asks until the rate limit lets the question pass.
func (s *stage) podResources() podresources.PodResourcesListerClient {
	s.Helper()
	return podresources.NewPodResourcesListerClient(s.dial(filepath.Join(s.Root(), "pod-resources", "kubelet.sock")))
}

// list is what pod resources List says, sorted.
func (s *stage) list() []string {
	s.Helper()
	client := s.podResources()
	answer, err := client.List(s.deadline(), &podresources.ListPodResourcesRequest{}, grpc.WaitForReady(true))
	if err != nil {
		s.Fatal(err)
	}
	var lines []string
	for _, pod := range answer.PodResources {
		lines = append(lines, described(pod))
	}
	slices.Sort(lines)
	return lines
}

// get is what pod resources Get says.
func (s *stage) get(pod string) string {
	s.Helper()
	request := &podresources.GetPodResourcesRequest{PodNamespace: "default", PodName: pod}
	answer, err := s.podResources().Get(s.deadline(), request, grpc.WaitForReady(true))
	if err != nil {
		return verdict(err)
	}
	return described(answer.PodResources)
}

func described(pod *podresources.PodResources) string {
	var containers []string
	for _, container := range pod.Containers {
		containers = append(containers, fmt.Sprintf("%s %s", container.Name, devicesOf(container.Devices)))
	}
	return fmt.Sprintf("%s/%s: %s", pod.Namespace, pod.Name, strings.Join(containers, ", "))
}

func devicesOf(devices []*podresources.ContainerDevices) []string {
	lines := []string{}
	for _, entry := range devices {
		line := fmt.Sprintf("%s=%s", entry.ResourceName, strings.Join(entry.DeviceIds, "+"))
		if entry.Topology != nil {
			var nodes []string
			for _, node := range entry.Topology.Nodes {
				nodes = append(nodes, fmt.Sprint(node.ID))
			}
			line += "@" + strings.Join(nodes, "+")
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

// verdict is an error as a plugin sees it.
func verdict(err error) string {
	if err == nil {
		return "ok"
	}
	known, is := status.FromError(err)
	if !is {
		return err.Error()
	}
	return fmt.Sprintf("%s: %s", known.Code(), known.Message())
}

// must ends the test at an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// isGone says whether there is no such file.
func isGone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}
