package kubelet

import (
	"encoding/json"
	"fmt"
	"io"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/exec"

	cadvisor "github.com/google/cadvisor/info/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/kubelet/cm/topologymanager"
)

// Variable is the environment variable that holds the [Config] of a process that is to be a kubelet.
const Variable = "VIRTNET_TEST_KUBELET"

// Config is how a kubelet is to be.
type Config struct {
	// Root is what --root-dir is.
	Root string
	// NUMANodes is how many NUMA nodes the machine has; with more than one the topology policy is best-effort.
	NUMANodes int
	// Pods are those that the API server knows when the kubelet starts.
	Pods []Known
}

func (c Config) policy() string {
	if c.NUMANodes > 1 {
		return topologymanager.PolicyBestEffort
	}
	return topologymanager.PolicyNone
}

func (c Config) machine() []cadvisor.Node {
	nodes := make([]cadvisor.Node, max(c.NUMANodes, 1))
	for id := range nodes {
		nodes[id].Id = id
		for range nodes {
			nodes[id].Distances = append(nodes[id].Distances, 20)
		}
		nodes[id].Distances[id] = 10
	}
	return nodes
}

// Known is a pod that was there before the kubelet started.
type Known struct {
	Pod Pod
	// Running are the containers that the runtime says are running.
	Running []string
}

// Pod is as much of a pod as matters to devices.
type Pod struct {
	UID, Namespace, Name string
	// Init containers, then the others.
	Init, Containers []Container
}

// Container of a [Pod].
type Container struct {
	Name string
	// Sidecar is an init container with restartPolicy Always.
	Sidecar bool
	// Limits of extended resources.
	Limits map[string]int64
}

func (p Pod) object() *v1.Pod {
	object := &v1.Pod{ObjectMeta: meta.ObjectMeta{UID: types.UID(p.UID), Namespace: p.Namespace, Name: p.Name}}
	for _, container := range p.Init {
		object.Spec.InitContainers = append(object.Spec.InitContainers, container.object())
	}
	for _, container := range p.Containers {
		object.Spec.Containers = append(object.Spec.Containers, container.object())
	}
	return object
}

func (c Container) object() v1.Container {
	limits := v1.ResourceList{}
	for name, count := range c.Limits {
		limits[v1.ResourceName(name)] = *resource.NewQuantity(count, resource.DecimalSI)
	}
	object := v1.Container{Name: c.Name, Resources: v1.ResourceRequirements{Limits: limits, Requests: limits}}
	if c.Sidecar {
		always := v1.ContainerRestartPolicyAlways
		object.RestartPolicy = &always
	}
	return object
}

// Which container.
type Which struct{ UID, Container string }

// Admission is what became of a pod.
type Admission struct {
	Admitted        bool
	Reason, Message string
}

// Options are what a container is given. Mounts, devices and annotations are not here, since no scenario needs them.
type Options struct{ Env map[string]string }

// Capacity of one resource.
type Capacity struct{ Capacity, Allocatable int64 }

// Client speaks to a kubelet's process.
type Client struct {
	process *exec.Cmd
	rpc     *rpc.Client
	input   io.Closer
	ended   chan struct{}
}

// Start starts a kubelet: this very program again, which must call [Main] when [Variable] is set. It serves its sockets
// when Start returns. Its log goes to the file.
func Start(config Config, log *os.File) (*Client, error) {
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	process := exec.Command("/proc/self/exe")
	process.Env = append(os.Environ(), Variable+"="+string(text))
	process.Stderr = log
	input, err := process.StdinPipe()
	if err != nil {
		return nil, err
	}
	output, err := process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := process.Start(); err != nil {
		return nil, err
	}
	client := &Client{process: process, input: input, ended: make(chan struct{})}
	client.rpc = jsonrpc.NewClient(struct {
		io.Reader
		io.WriteCloser
	}{output, input})
	go func() {
		// How it ended is in its log; the calls that fail say that it did.
		_ = process.Wait()
		close(client.ended)
	}()
	if _, err := client.Capacity(); err != nil {
		client.Kill()
		return nil, fmt.Errorf("the kubelet does not start, see %s: %w", log.Name(), err)
	}
	return client, nil
}

// Admit admits a pod; an error means that the kubelet is gone.
func (c *Client) Admit(pod Pod) (answer Admission, err error) {
	err = c.rpc.Call("Kubelet.Admit", pod, &answer)
	return answer, err
}

// Options is what the kubelet asks the device manager for before each start of a container.
func (c *Client) Options(uid, container string) (answer Options, err error) {
	err = c.rpc.Call("Kubelet.Options", Which{uid, container}, &answer)
	return answer, err
}

// End says that all containers of the pod have ended for good.
func (c *Client) End(uid string) error { return c.rpc.Call("Kubelet.End", uid, &struct{}{}) }

// Remove says that the pod is deleted.
func (c *Client) Remove(uid string) error { return c.rpc.Call("Kubelet.Remove", uid, &struct{}{}) }

// Capacity is what the node status would be.
func (c *Client) Capacity() (answer map[string]Capacity, err error) {
	err = c.rpc.Call("Kubelet.Capacity", struct{}{}, &answer)
	return answer, err
}

// Stop ends the process after the device manager was stopped.
func (c *Client) Stop() error {
	err := c.rpc.Call("Kubelet.Stop", struct{}{}, &struct{}{})
	c.Kill()
	return err
}

// Kill ends the process at once.
func (c *Client) Kill() {
	// It may have ended already.
	_ = c.process.Process.Kill()
	<-c.ended
}

// Ended is closed when the process is gone.
func (c *Client) Ended() <-chan struct{} { return c.ended }
