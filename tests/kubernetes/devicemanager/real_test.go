package devicemanager

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"virtnet/tests/kubernetes/devicemanager/kubelet"
)

// realNode is a node with the kubelet's own device manager; the API server and the runtime are played here.
type realNode struct {
	t      *testing.T
	config kubelet.Config
	log    *os.File
	client *kubelet.Client
	// pods that exist, in the order in which they came, each with the containers that run.
	pods []kubelet.Known
}

func startReal(t *testing.T, root string, numaNodes int) Node {
	t.Helper()
	must(t, os.MkdirAll(root, 0o755))
	log, err := os.Create(filepath.Join(filepath.Dir(root), "kubelet.log"))
	must(t, err)
	node := &realNode{t: t, config: kubelet.Config{Root: root, NUMANodes: numaNodes}, log: log}
	node.boot()
	t.Cleanup(func() {
		node.client.Kill()
		log.Close()
	})
	return node
}

func (n *realNode) boot() {
	n.t.Helper()
	n.config.Pods = n.pods
	client, err := kubelet.Start(n.config, n.log)
	must(n.t, err)
	n.client = client
}

func (n *realNode) Root() string { return n.config.Root }

func (n *realNode) Capacity() map[string]kubelet.Capacity {
	n.t.Helper()
	capacity, err := n.client.Capacity()
	must(n.t, err)
	return capacity
}

func (n *realNode) Start(pod Pod) Outcome {
	n.t.Helper()
	admission, err := n.client.Admit(pod)
	must(n.t, err)
	if !admission.Admitted {
		// The words are those of rejectPod in pkg/kubelet/kubelet.go.
		return Outcome{Refused: admission.Reason + ": Pod was rejected: " + admission.Message}
	}
	known := kubelet.Known{Pod: pod}
	outcome := Outcome{Env: map[string]map[string]string{}}
	for _, container := range slices.Concat(pod.Init, pod.Containers) {
		options, err := n.client.Options(pod.UID, container.Name)
		must(n.t, err)
		outcome.Env[container.Name] = options.Env
		ends := slices.ContainsFunc(pod.Init, func(init Container) bool { return init.Name == container.Name })
		if !ends || container.Sidecar {
			known.Running = append(known.Running, container.Name)
		}
	}
	n.pods = append(n.pods, known)
	return outcome
}

func (n *realNode) End(pod Pod) {
	n.t.Helper()
	must(n.t, n.client.End(pod.UID))
	for index := range n.pods {
		if n.pods[index].Pod.UID == pod.UID {
			n.pods[index].Running = nil
		}
	}
}

func (n *realNode) Delete(pod Pod) {
	n.t.Helper()
	must(n.t, n.client.Remove(pod.UID))
	n.pods = slices.DeleteFunc(n.pods, func(known kubelet.Known) bool { return known.Pod.UID == pod.UID })
}

func (n *realNode) Restart() {
	n.t.Helper()
	must(n.t, n.client.Stop())
	n.boot()
}

// Kill ends the kubelet without warning and starts it again.
func (n *realNode) Kill() {
	n.t.Helper()
	n.client.Kill()
	n.boot()
}
