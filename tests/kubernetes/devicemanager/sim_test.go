package devicemanager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"virtnet/tests/kubernetes/devicemanager/kubelet"
)

const nodeName = "node"

// simNode is a node that virtsim plays. It is spoken to as Kubernetes is, with client-go.
type simNode struct {
	t      *testing.T
	root   string
	dir    string
	out    string
	client *kubernetes.Clientset
}

func startSim(t *testing.T, root string, numaNodes int) Node {
	t.Helper()
	folder := filepath.Dir(root)
	node := &simNode{t: t, root: root, dir: filepath.Join(folder, "virtsim"), out: filepath.Join(folder, "out")}
	for _, folder := range []string{node.root, node.dir, node.out} {
		must(t, os.MkdirAll(folder, 0o755))
	}
	log, err := os.Create(filepath.Join(folder, "virtsim.log"))
	must(t, err)
	process := exec.Command(program("VIRTSIM"), "up", "--foreground",
		"--dir", node.dir, "--kubelet-dir", root, "--node-name", nodeName,
		"--cni-conf-dir", filepath.Join(folder, "net.d"), "--cni-bin-dir", filepath.Join(folder, "bin"),
		"--cni-cache-dir", filepath.Join(folder, "cache"))
	if numaNodes > 1 {
		process.Args = append(process.Args, "--align-numa")
	}
	process.Stdout, process.Stderr = log, log
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, process.Start())
	ended := make(chan struct{})
	go func() {
		// Its log tells why.
		_ = process.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		// A node that was told to end ends its pods, and a node that is killed does, too.
		_ = process.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(*patience, func() { _ = process.Process.Kill() })
		<-ended
		kill.Stop()
		log.Close()
	})
	node.await("virtsim starts", func(ctx context.Context) error {
		select {
		case <-ended:
			t.Fatalf("virtsim has ended, see %s", log.Name())
		default:
		}
		config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(node.dir, "kubeconfig"))
		if err != nil {
			return err
		}
		// The simulated API server speaks JSON only, and says so.
		config.ContentType, config.AcceptContentTypes = "application/json", "application/json"
		config.QPS, config.Burst = 1000, 1000
		if node.client, err = kubernetes.NewForConfig(config); err != nil {
			return err
		}
		if isGone(filepath.Join(root, "device-plugins", "kubelet.sock")) {
			return errors.New("no kubelet.sock")
		}
		_, err = node.client.CoreV1().Nodes().Get(ctx, nodeName, meta.GetOptions{})
		return err
	})
	return node
}

// await tries again until there is no error.
func (n *simNode) await(what string, try func(ctx context.Context) error) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), *patience)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			n.t.Fatalf("%s: %v", what, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (n *simNode) Root() string { return n.root }

func (n *simNode) Capacity() map[string]kubelet.Capacity {
	n.t.Helper()
	capacities := map[string]kubelet.Capacity{}
	n.await("get the node", func(ctx context.Context) error {
		node, err := n.client.CoreV1().Nodes().Get(ctx, nodeName, meta.GetOptions{})
		if err != nil {
			return err
		}
		for name, capacity := range node.Status.Capacity {
			if strings.Contains(string(name), "/") {
				allocatable := node.Status.Allocatable[name]
				capacities[string(name)] = kubelet.Capacity{Capacity: capacity.Value(), Allocatable: allocatable.Value()}
			}
		}
		return nil
	})
	return capacities
}

func (n *simNode) Start(pod Pod) Outcome {
	n.t.Helper()
	pods := n.client.CoreV1().Pods(pod.Namespace)
	_, err := pods.Create(context.Background(), n.object(pod), meta.CreateOptions{})
	must(n.t, err)
	var outcome Outcome
	n.await("the pod runs", func(ctx context.Context) error {
		seen, err := pods.Get(ctx, pod.Name, meta.GetOptions{})
		if err != nil {
			return err
		}
		if seen.Status.Phase == v1.PodFailed {
			outcome = Outcome{Refused: seen.Status.Reason + ": " + seen.Status.Message}
			return nil
		}
		outcome = Outcome{Env: map[string]map[string]string{}}
		for _, container := range slices.Concat(pod.Init, pod.Containers) {
			env, err := os.ReadFile(n.file(pod, container.Name))
			if err != nil {
				return fmt.Errorf("%w: %s %s", err, seen.Status.Phase, seen.Status.Message)
			}
			outcome.Env[container.Name] = ofPlugins(string(env))
		}
		if seen.Status.Phase != v1.PodRunning {
			return fmt.Errorf("it is %s: %s", seen.Status.Phase, seen.Status.Message)
		}
		return nil
	})
	return outcome
}

// ofPlugins is what plugins put into an environment: all but what every container has.
func ofPlugins(env string) map[string]string {
	variables := map[string]string{}
	for line := range strings.Lines(env) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch {
		case slices.Contains([]string{"PATH", "HOME", "HOSTNAME", "PWD", "OLDPWD", "SHLVL", "_"}, name):
		case strings.HasPrefix(name, "KUBERNETES_"):
		default:
			variables[name] = value
		}
	}
	return variables
}

func (n *simNode) file(pod Pod, container string) string {
	return filepath.Join(n.out, pod.Name+"-"+container)
}

func (n *simNode) end(pod Pod) string { return filepath.Join(n.out, pod.Name+"-end") }

// object is the pod for the API. Its containers leave their environment in a file and wait for their end.
func (n *simNode) object(pod Pod) *v1.Pod {
	object := &v1.Pod{
		ObjectMeta: meta.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace},
		Spec:       v1.PodSpec{NodeName: nodeName, HostNetwork: true, RestartPolicy: v1.RestartPolicyNever},
	}
	convert := func(container Container, stays bool) v1.Container {
		limits := v1.ResourceList{}
		for name, count := range container.Limits {
			limits[v1.ResourceName(name)] = *resource.NewQuantity(count, resource.DecimalSI)
		}
		file := n.file(pod, container.Name)
		script := fmt.Sprintf("env > %[1]s.new && mv %[1]s.new %[1]s", file)
		if stays {
			script += fmt.Sprintf("; trap 'exit 0' TERM; while [ ! -e %s ]; do sleep 0.1; done", n.end(pod))
		}
		converted := v1.Container{
			Name: container.Name, Image: "sh", Command: []string{"/bin/sh", "-c", script},
			Resources: v1.ResourceRequirements{Limits: limits, Requests: limits},
		}
		if container.Sidecar {
			always := v1.ContainerRestartPolicyAlways
			converted.RestartPolicy = &always
		}
		return converted
	}
	for _, container := range pod.Init {
		object.Spec.InitContainers = append(object.Spec.InitContainers, convert(container, container.Sidecar))
	}
	for _, container := range pod.Containers {
		object.Spec.Containers = append(object.Spec.Containers, convert(container, true))
	}
	return object
}

func (n *simNode) End(pod Pod) {
	n.t.Helper()
	must(n.t, os.WriteFile(n.end(pod), nil, 0o644))
	n.await("the pod ends", func(ctx context.Context) error {
		seen, err := n.client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, meta.GetOptions{})
		if err != nil {
			return err
		}
		if seen.Status.Phase != v1.PodSucceeded {
			return fmt.Errorf("it is %s", seen.Status.Phase)
		}
		return nil
	})
}

func (n *simNode) Delete(pod Pod) {
	n.t.Helper()
	// Not at once: then the object would go before the kubelet has ended the pod.
	grace := int64(1)
	pods := n.client.CoreV1().Pods(pod.Namespace)
	n.await("delete the pod", func(ctx context.Context) error {
		err := pods.Delete(ctx, pod.Name, meta.DeleteOptions{GracePeriodSeconds: &grace})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
	n.await("the pod is gone", func(ctx context.Context) error {
		_, err := pods.Get(ctx, pod.Name, meta.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there: %w", err)
	})
	// The name may be used again.
	left, err := filepath.Glob(filepath.Join(n.out, pod.Name+"-*"))
	must(n.t, err)
	for _, file := range left {
		must(n.t, os.Remove(file))
	}
}

func (n *simNode) Restart() {
	n.t.Helper()
	command := exec.Command(program("VIRTSIM"), "--dir", n.dir, "restart", "kubelet")
	if output, err := command.CombinedOutput(); err != nil {
		n.t.Fatalf("restart the kubelet: %v: %s", err, output)
	}
}
