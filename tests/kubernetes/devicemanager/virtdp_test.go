package devicemanager

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const virt = "kernel.org/virt"

// agent is a virtdp that runs.
type agent struct {
	s       *stage
	process *exec.Cmd
	log     string
	ended   chan struct{}
}

// agent starts virtdp on the node's folder, with these options besides. The tree is what it sees of the hardware.
func (s *stage) agent(tree string, options ...string) *agent {
	s.Helper()
	s.agents++
	a := &agent{s: s, log: filepath.Join(s.folder, fmt.Sprintf("virtdp-%d.log", s.agents)), ended: make(chan struct{})}
	log, err := os.Create(a.log)
	must(s, err)
	defer log.Close()
	options = append(options, "--sysfs", tree, "--kubelet-dir", s.root(),
		"--state-dir", filepath.Join(s.folder, "state"), "--device-info-dir", s.devinfo(), "--logtostderr", "-v", "5")
	a.process = exec.Command(program("VIRTDP"), options...)
	a.process.Stderr = log
	a.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(s, a.process.Start())
	go func() {
		// Its log tells why, where that matters.
		_ = a.process.Wait()
		close(a.ended)
	}()
	s.Cleanup(func() { a.end(syscall.SIGKILL) })
	return a
}

func (s *stage) devinfo() string { return filepath.Join(s.folder, "devinfo") }

// end sends the signal and waits until the process is gone.
func (a *agent) end(signal syscall.Signal) {
	// It may be gone already.
	_ = a.process.Process.Signal(signal)
	<-a.ended
}

// registered waits until the agent has registered this often, and says how often it did.
func (a *agent) registered(times int) {
	a.s.Helper()
	a.s.eventually("registration "+fmt.Sprint(times), func() string {
		log, err := os.ReadFile(a.log)
		if err != nil {
			return err.Error()
		}
		if count := strings.Count(string(log), "registered with the Kubelet"); count < times {
			return fmt.Sprintf("%d so far, see %s", count, a.log)
		}
		return ""
	})
}

// sockets are those that virtdp serves.
func (s *stage) sockets() []string {
	s.Helper()
	sockets, err := filepath.Glob(s.socket("virtNet*"))
	must(s, err)
	return sockets
}

// noteSockets waits until virtdp has so many, and notes it.
func (s *stage) noteSockets(count int) {
	s.Helper()
	s.eventually("sockets", func() string {
		if sockets := s.sockets(); len(sockets) != count {
			return fmt.Sprint(sockets)
		}
		return ""
	})
	s.note("%d sockets", count)
}

// atLast runs a pod. The kubelet may learn of the end of an old stream only now, and disconnect the new one: then the pod
// fails, as it would on any node, and another is made in its place.
func (s *stage) atLast(pod Pod) Outcome {
	s.Helper()
	pod.Namespace, pod.UID = "default", "uid-"+pod.Name
	var outcome Outcome
	s.eventually("pod "+pod.Name, func() string {
		outcome = s.Start(pod)
		if outcome.Refused == "" {
			return ""
		}
		s.Delete(pod)
		if !strings.Contains(outcome.Refused, "no healthy devices present") &&
			!strings.Contains(outcome.Refused, "has been stopped") &&
			!strings.Contains(outcome.Refused, "rpc error") {
			s.Fatalf("pod %s is refused: %s", pod.Name, outcome.Refused)
		}
		return outcome.Refused
	})
	s.pods[pod.Name] = pod
	s.note("pod %s %s", pod.Name, outcome)
	return outcome
}

func wanting(name string, count int64) Container {
	return Container{Name: name, Limits: map[string]int64{virt: count}}
}

func TestVirtdpOffersItsNICsAndPodsGetThem(t *testing.T) {
	scenario(t, func(s *stage) {
		s.agent(sysfs(s.T))
		s.capacity(virt, 4, 4)
		s.noteSockets(1)
		s.note("allocatable %v", s.allocatable())
		outcome := s.run(one("first", virt, 1))
		env := outcome.Env["c"]
		if address := env["VIRT_PCI_ADDR"]; address == "" || address != env["PCIDEVICE_KERNEL_ORG_VIRT"] {
			s.Errorf("no address: %v", env)
		}
		file := filepath.Join(s.devinfo(), "kernel.org-virt-"+env["VIRT_PCI_ADDR"]+"-device.json")
		text, err := os.ReadFile(file)
		must(s, err)
		s.note("%s: %s", filepath.Base(file), text)
		s.note("%q %s", s.list(), s.get("first"))
		s.run(one("rest", virt, 3))
		s.run(one("more", virt, 1))
		s.capacity(virt, 4, 4)
		s.delete("first")
		s.delete("more")
		s.run(one("again", virt, 1))
		s.note("%q", s.list())
	})
}

func TestVirtdpPrefersNICsOfOneNUMANodeEvenIfTheKubeletDoesNotCare(t *testing.T) {
	scenario(t, func(s *stage) {
		s.agent(sysfs(s.T))
		s.capacity(virt, 4, 4)
		s.run(one("one", virt, 1))
		s.run(one("two", virt, 2))
		nodes := map[int]bool{}
		for _, nic := range nics {
			if strings.Contains(s.get("two"), nic.pci) {
				nodes[nic.node] = true
			}
		}
		if len(nodes) != 1 {
			s.Errorf("from several NUMA nodes: %s", s.get("two"))
		}
	})
}

func TestTheTopologyManagerKeepsAPodOnOneNUMANode(t *testing.T) {
	scenarioOn(t, 2, func(s *stage) {
		s.agent(sysfs(s.T))
		s.capacity(virt, 4, 4)
		for _, name := range []string{"first", "second"} {
			s.run(one(name, virt, 2))
			devices := s.get(name)
			if strings.Contains(devices, "@0") == strings.Contains(devices, "@1") {
				s.Errorf("not of one NUMA node: %s", devices)
			}
		}
	})
}

// The plugin itself has no say here: it is asked within what the topology manager has chosen.
func TestAlignedDevicesAreOfferedToThePluginFirst(t *testing.T) {
	scenarioOn(t, 2, func(s *stage) {
		how := character{
			prefers: true,
			prefer:  func(available, _ []string, size int32) []string { return available[len(available)-int(size):] },
		}
		p := s.ready("p", nicsOf, how, device("a", 0), device("b", 1), device("c", 1), device("d", 1), device("e"))
		s.run(one("two", nicsOf, 2))
		s.run(one("rest", nicsOf, 3))
		s.noteCalls(p)
	})
}

func TestVirtdpGivesAnInitContainersNICToTheNext(t *testing.T) {
	scenario(t, func(s *stage) {
		s.agent(sysfs(s.T))
		s.capacity(virt, 4, 4)
		outcome := s.run(Pod{Name: "pod", Init: []Container{wanting("i", 1)}, Containers: []Container{wanting("c", 2)}})
		if !strings.Contains(outcome.Env["c"]["VIRT_PCI_ADDR"], outcome.Env["i"]["VIRT_PCI_ADDR"]) {
			s.Errorf("the init container's NIC is lost: %s", outcome)
		}
		sidecar := wanting("s", 1)
		sidecar.Sidecar = true
		s.run(Pod{Name: "beside", Init: []Container{sidecar}, Containers: []Container{wanting("c", 1)}})
		s.note("%q", s.list())
		s.run(one("more", virt, 1))
	})
}

func TestVirtdpRegistersWithARestartedKubelet(t *testing.T) {
	scenario(t, func(s *stage) {
		a := s.agent(sysfs(s.T))
		s.capacity(virt, 4, 4)
		s.run(one("pod", virt, 2))
		for round := range 3 {
			s.Restart()
			a.registered(round + 2)
			s.capacity(virt, 4, 4)
			s.noteSockets(1)
			s.note("%q", s.list())
		}
		s.run(one("rest", virt, 2))
		s.run(one("more", virt, 1))
	})
}

func TestVirtdpWaitsForAKubeletThatIsNotThere(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			s := newStage(t)
			s.agent(sysfs(t))
			s.Node = kind.start(t, s.root(), 1)
			s.capacity(virt, 4, 4)
			s.run(one("pod", virt, 4))
		})
	}
}

func TestWhenVirtdpIsKilledCapacityStaysAndTheNextOneGoesOn(t *testing.T) {
	scenario(t, func(s *stage) {
		tree := sysfs(s.T)
		a := s.agent(tree)
		s.capacity(virt, 4, 4)
		s.run(one("pod", virt, 2))
		for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
			a.end(signal)
			s.capacity(virt, 4, 0)
			s.note("%q", s.list())
			a = s.agent(tree)
			a.registered(1)
			s.capacity(virt, 4, 4)
			s.noteSockets(1)
			s.note("%q", s.list())
		}
		s.run(one("rest", virt, 2))
		s.run(one("more", virt, 1))
	})
}

func TestVirtdpServesAnewWhenItsSocketIsRemoved(t *testing.T) {
	scenario(t, func(s *stage) {
		a := s.agent(sysfs(s.T))
		s.capacity(virt, 4, 4)
		for _, socket := range s.sockets() {
			must(s, os.Remove(socket))
		}
		a.registered(2)
		s.capacity(virt, 4, 4)
		s.noteSockets(1)
		s.run(one("pod", virt, 4))
	})
}

// The kubelet sends the escaped path of a socket in plugins_registry as its authority, which virtdp's HTTP/2 library
// refuses unless the path has an @: then the socket would never be taken, and nobody would say why.
func TestVirtdpInTheRegistryIsTakenWhateverTheAuthority(t *testing.T) {
	scenario(t, func(s *stage) {
		tree := sysfs(s.T)
		pattern := s.registry("virtNet*")
		sockets := func() []string {
			s.Helper()
			sockets, err := filepath.Glob(pattern)
			must(s, err)
			return sockets
		}
		a := s.agent(tree, "--registration", "plugins-registry")
		s.capacity(virt, 4, 4)
		s.noteSockets(0)
		s.note("%d sockets in the registry", len(sockets()))
		s.run(one("pod", virt, 2))
		s.Restart()
		s.capacity(virt, 4, 4)
		for _, socket := range sockets() {
			must(s, os.Remove(socket))
		}
		a.registered(3)
		s.capacity(virt, 4, 4)
		a.end(syscall.SIGKILL)
		s.capacity(virt, 4, 0)
		a = s.agent(tree, "--registration", "plugins-registry")
		a.registered(1)
		s.capacity(virt, 4, 4)
		s.run(one("rest", virt, 2))
		s.run(one("more", virt, 1))
		s.note("%q", s.list())
		a.end(syscall.SIGTERM)
		s.capacity(virt, 4, 0)
		s.note("%d sockets in the registry", len(sockets()))
	})
}

func TestOneVirtdpHandsOverToAnother(t *testing.T) {
	scenario(t, func(s *stage) {
		tree := sysfs(s.T)
		first := s.agent(tree)
		s.capacity(virt, 4, 4)
		s.run(one("pod", virt, 1))
		second := s.agent(tree)
		second.registered(1)
		s.capacity(virt, 4, 4)
		// The end of the first one's stream may make the kubelet disconnect the second, which must notice.
		first.end(syscall.SIGTERM)
		s.atLast(one("rest", virt, 3))
		s.capacity(virt, 4, 4)
		s.noteSockets(1)
		s.note("%q", s.list())
		second.end(syscall.SIGTERM)
		s.capacity(virt, 4, 0)
		s.noteSockets(0)
	})
}

// The end of the second one's stream makes the kubelet give up the resource, and nobody tells the first: its own stream
// stays open.
func TestASecondVirtdpThatGoesAgainLeavesTheFirstInCharge(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"ends": syscall.SIGTERM, "is killed": syscall.SIGKILL} {
		t.Run(sentence("the second "+name), func(t *testing.T) {
			scenario(t, func(s *stage) {
				tree := sysfs(s.T)
				first := s.agent(tree)
				s.capacity(virt, 4, 4)
				second := s.agent(tree)
				second.registered(1)
				s.capacity(virt, 4, 4)
				second.end(signal)
				first.registered(2)
				s.capacity(virt, 4, 4)
				s.atLast(one("pod", virt, 4))
				s.noteSockets(1)
			})
		})
	}
}

// inUse are the devices of all pods by pod resources, each with its pod.
func (s *stage) inUse() map[string]string {
	s.Helper()
	users := map[string]string{}
	for _, line := range s.list() {
		pod, devices, _ := strings.Cut(line, ":")
		for _, nic := range nics {
			if !strings.Contains(devices, nic.pci) {
				continue
			}
			if other, taken := users[nic.pci]; taken {
				s.Errorf("%s belongs to %s and %s", nic.pci, other, pod)
			}
			users[nic.pci] = pod
		}
	}
	return users
}

// addresses are the NICs that a pod was told it has.
func addresses(outcome Outcome) []string {
	list := strings.Split(outcome.Env["c"]["VIRT_PCI_ADDR"], ",")
	slices.Sort(list)
	return list
}
