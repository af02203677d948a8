package devicemanager

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"
)

func TestAPluginRegistersAndEachListReplacesTheOneBefore(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.ready("p", nicsOf, character{}, device("a"), device("b"))
		for _, list := range [][]*deviceplugin.Device{
			{device("a"), ill("b")}, {device("c")}, {}, {device("a", 0), device("b", 0, 1)},
		} {
			p.list(list...)
			s.listed(nicsOf, list...)
		}
		s.noteCalls(p)
	})
}

func TestARegistrationThatIsRefusedSaysWhy(t *testing.T) {
	scenario(t, func(s *stage) {
		s.plug("mute", s.socket("mute.sock"), character{fail: map[string]string{"GetDevicePluginOptions": "ill"}})
		p := s.plug("p", s.socket("p.sock"), character{}, device("a"))
		for _, refused := range []*deviceplugin.RegisterRequest{
			{Version: "v1", Endpoint: "p.sock", ResourceName: nicsOf},
			{Version: "", Endpoint: "p.sock", ResourceName: nicsOf},
			request("p.sock", "nic"),
			request("p.sock", ""),
			request("p.sock", "example.com/"),
			request("p.sock", "/nic"),
			request("p.sock", "example.com/nic/more"),
			request("p.sock", "example.com/-nic"),
			request("p.sock", "Example.com/nic"),
			request("p.sock", "kubernetes.io/nic"),
			request("p.sock", "x.kubernetes.io/nic"),
			request("p.sock", "requests.example.com/nic"),
			request("p.sock", "example.com/a_nic.of-Mine"),
			request("p.sock", "example.com/0123456789012345678901234567890123456789012345678901234567890123"),
			request("p.sock", "example.com/012345678901234567890123456789012345678901234567890123456789012"),
			request("mute.sock", "example.com/mute"),
			request("nowhere.sock", "example.com/nowhere"),
		} {
			s.note("register %q %q %q: %s", refused.Version, refused.ResourceName, refused.Endpoint, verdict(s.register(refused)))
		}
		// Two of them were good.
		s.expect(p, 4)
		s.noteCalls(p)
	})
}

func TestAnEndpointIsAPathBelowThePluginFolder(t *testing.T) {
	scenario(t, func(s *stage) {
		must(s, os.Mkdir(s.socket("below"), 0o755))
		for index, endpoint := range []string{"/p0.sock", "below/p1.sock", "./p2.sock", "../p3.sock", "below/../p4.sock"} {
			name := fmt.Sprintf("p%d", index)
			s.plug(name, s.socket(endpoint), character{}, device("a"))
			resource := nicsOf + name
			s.note("register %s: %s", endpoint, verdict(s.register(request(endpoint, resource))))
			s.capacity(resource, 1, 1)
		}
	})
}

func TestAPodGetsItsDevicesAndOthersDoNot(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.ready("p", nicsOf, character{}, device("a"), device("b", 1))
		s.note("before: %q %s", s.list(), s.get("all"))
		s.run(one("all", nicsOf, 2))
		s.note("%q", s.list())
		s.note("%s", s.get("all"))
		s.note("%s", s.get("another"))
		s.note("allocatable: %v", s.allocatable())
		s.run(one("more", nicsOf, 1))
		s.note("%q %s", s.list(), s.get("more"))
		s.delete("more")
		s.run(one("unknown", "example.com/unknown", 1))
		s.run(one("none", nicsOf, 0))
		s.run(Pod{Name: "plain", Containers: []Container{{Name: "x"}, {Name: "y"}}})
		s.note("%q", s.list())
		s.delete("all")
		s.run(one("next", nicsOf, 2))
		s.note("%q", s.list())
		s.capacity(nicsOf, 2, 2)
		s.noteCalls(p)
	})
}

func (s *stage) allocatable() []string {
	s.Helper()
	client := s.podResources()
	answer, err := client.GetAllocatableResources(s.deadline(), &podresources.AllocatableResourcesRequest{}, grpc.WaitForReady(true))
	must(s, err)
	return devicesOf(answer.Devices)
}

func TestThePluginSaysWhichDevicesItPrefers(t *testing.T) {
	scenario(t, func(s *stage) {
		how := character{
			prefers: true,
			prefer: func(available, must []string, size int32) []string {
				return append(must, available[len(available)-int(size)+len(must):]...)
			},
		}
		p := s.ready("p", nicsOf, how, device("a"), device("b"), device("c"), device("d"))
		s.run(one("first", nicsOf, 2))
		// An init container's device is given again, and must be in the answer.
		s.run(Pod{
			Name:       "second",
			Init:       []Container{{Name: "i", Limits: map[string]int64{nicsOf: 1}}},
			Containers: []Container{{Name: "c", Limits: map[string]int64{nicsOf: 2}}},
		})
		s.delete("first")
		s.run(one("all", nicsOf, 2))
		s.noteCalls(p)
	})
}

func TestAnAnswerThatIsPartlyWrongIsFilledUp(t *testing.T) {
	scenario(t, func(s *stage) {
		how := character{
			prefers: true,
			prefer:  func([]string, []string, int32) []string { return []string{"stranger", "b"} },
		}
		p := s.ready("p", nicsOf, how, device("a"), device("b"), device("c"))
		s.run(one("one", nicsOf, 1))
		s.run(one("rest", nicsOf, 2))
		s.noteCalls(p)
	})
}

func TestNoPreferenceAtAllIsNoError(t *testing.T) {
	scenario(t, func(s *stage) {
		how := character{prefers: true}
		p := s.ready("p", nicsOf, how, device("a"))
		s.run(one("one", nicsOf, 1))
		s.noteCalls(p)
	})
}

func TestWhereThePluginFailsThePodFailsAndItsDevicesAreFree(t *testing.T) {
	for _, method := range []string{"Allocate", "GetPreferredAllocation"} {
		t.Run(sentence(method+" fails"), func(t *testing.T) {
			scenario(t, func(s *stage) {
				how := character{prefers: method != "Allocate", fail: map[string]string{method: "the plugin is ill"}}
				p := s.ready("p", nicsOf, how, device("a"), device("b"))
				s.run(one("one", nicsOf, 1))
				s.note("%q %s", s.list(), s.get("one"))
				p.mutex.Lock()
				p.how.fail = nil
				p.mutex.Unlock()
				s.run(one("all", nicsOf, 2))
				s.note("%q", s.list())
				calls := p.taken()
				// Which device it was is left to chance.
				s.note("%d calls", len(calls))
			})
		})
	}
}

func TestAPodThatFailsAtItsSecondContainerKeepsNothing(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.ready("p", nicsOf, character{}, device("a"), device("b"))
		s.run(Pod{Name: "greedy", Containers: []Container{
			{Name: "x", Limits: map[string]int64{nicsOf: 2}}, {Name: "y", Limits: map[string]int64{nicsOf: 1}},
		}})
		s.note("%q", s.list())
		s.run(one("all", nicsOf, 2))
		s.note("%q", s.list())
		s.noteCalls(p)
	})
}

func TestInitContainersLeaveTheirDevicesToTheOthers(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.ready("p", nicsOf, character{}, device("a"), device("b"))
		want := func(name string, count int64) Container {
			return Container{Name: name, Limits: map[string]int64{nicsOf: count}}
		}
		s.run(Pod{Name: "pod", Init: []Container{want("i", 2), want("j", 2)}, Containers: []Container{want("c", 2)}})
		s.note("%q", s.list())
		s.note("%s", s.get("pod"))
		s.run(one("more", nicsOf, 1))
		s.noteCalls(p)
	})
}

func TestASidecarKeepsItsDevices(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.ready("p", nicsOf, character{}, device("a"), device("b"))
		sidecar := Container{Name: "s", Sidecar: true, Limits: map[string]int64{nicsOf: 1}}
		app := Container{Name: "c", Limits: map[string]int64{nicsOf: 1}}
		pod := Pod{Name: "pod", Init: []Container{sidecar}, Containers: []Container{app}}
		pod.Namespace, pod.UID = "default", "uid-pod"
		s.pods["pod"] = pod
		outcome := s.Start(pod)
		if outcome.Env["s"]["NICS"] == outcome.Env["c"]["NICS"] {
			s.Errorf("both have the same device: %s", outcome)
		}
		s.run(one("more", nicsOf, 1))
		s.note("%d calls", len(p.taken()))
	})
}

func TestAPluginThatWantsItIsCalledBeforeEachStart(t *testing.T) {
	scenario(t, func(s *stage) {
		how := character{preStarts: true}
		p := s.ready("p", nicsOf, how, device("a"), device("b"))
		s.run(Pod{
			Name:       "pod",
			Init:       []Container{{Name: "i", Limits: map[string]int64{nicsOf: 2}}},
			Containers: []Container{{Name: "c", Limits: map[string]int64{nicsOf: 2}}},
		})
		s.noteCalls(p)
	})
}

func TestAContainerWithTwoResourcesGetsBoth(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.ready("p", nicsOf, character{env: map[string]string{"P": "1"}}, device("a"))
		q := s.ready("q", "example.com/disk", character{env: map[string]string{"Q": "2"}}, device("x"))
		env := s.Start(Pod{UID: "uid-pod", Name: "pod", Namespace: "default", Containers: []Container{
			{Name: "c", Limits: map[string]int64{nicsOf: 1, "example.com/disk": 1}},
		}}).Env["c"]
		// Both set NICS, and which of the two wins is left to chance.
		s.note("P=%s Q=%s", env["P"], env["Q"])
		s.note("%q", s.list())
		s.noteCalls(p)
		s.noteCalls(q)
	})
}

func TestPodResourcesForgetsAPodThatHasEnded(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.ready("p", nicsOf, character{}, device("a"))
		s.run(one("ends", nicsOf, 1))
		s.End(s.pods["ends"])
		s.eventually("the pod is not listed", func() string {
			if list := s.list(); len(list) != 0 {
				return fmt.Sprint(list)
			}
			return ""
		})
		s.note("%s", s.get("ends"))
		s.run(one("next", nicsOf, 1))
		s.note("%q", s.list())
		s.noteCalls(p)
	})
}

func TestPodResourcesLimitsItsCallers(t *testing.T) {
	scenario(t, func(s *stage) {
		client := s.podResources()
		request := &podresources.AllocatableResourcesRequest{}
		s.eventually("a call is refused", func() string {
			for range 100 {
				_, err := client.GetAllocatableResources(s.deadline(), request, grpc.WaitForReady(true))
				if err != nil {
					s.note("%s", verdict(err))
					return ""
				}
			}
			return "100 calls were answered"
		})
	})
}

func TestADeviceOnTwoNUMANodesIsShownOncePerNode(t *testing.T) {
	scenario(t, func(s *stage) {
		odd := device("c")
		odd.Topology = &deviceplugin.TopologyInfo{}
		p := s.ready("p", nicsOf, character{}, device("a", 0, 1), device("b", 0), odd)
		s.note("allocatable: %v", s.allocatable())
		s.run(one("all", nicsOf, 3))
		s.note("%q", s.list())
		s.noteCalls(p)
	})
}

func TestAtItsStartTheKubeletRemovesSocketsAndNothingElse(t *testing.T) {
	scenario(t, func(s *stage) {
		s.touch(s.socket("file"))
		must(s, os.Mkdir(s.socket("folder"), 0o755))
		s.plug("p", s.socket("p.sock"), character{})
		s.plug("q", s.socket("folder/q.sock"), character{})
		must(s, os.Symlink("folder/q.sock", s.socket("link")))
		s.Restart()
		for _, name := range []string{"file", "folder", "p.sock", "folder/q.sock", "link", "kubelet.sock"} {
			s.note("%s is gone: %t", name, isGone(s.socket(name)))
		}
	})
}

func TestAfterARestartThePluginRegistersAndPodsKeepTheirDevices(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.ready("p", nicsOf, character{}, device("a"), device("b"))
		s.run(one("all", nicsOf, 2))
		s.Restart()
		s.capacity(nicsOf, 0, 0)
		s.eventually("the stream ends", func() string {
			if open := p.streams(); open != 0 {
				return fmt.Sprintf("%d are open", open)
			}
			return ""
		})
		s.note("socket is gone: %t", isGone(s.socket("p.sock")))
		s.note("%q %s", s.list(), s.get("all"))
		s.note("allocatable: %v", s.allocatable())
		s.run(one("early", nicsOf, 1))
		s.delete("early")
		q := s.ready("q", nicsOf, character{}, device("a"), device("b"), device("c"))
		s.note("%q", s.list())
		s.run(one("third", nicsOf, 1))
		s.delete("all")
		s.run(one("next", nicsOf, 2))
		s.noteCalls(p)
		s.noteCalls(q)
	})
}

func TestAPodThatWasDeletedDuringTheRestartLeavesItsDevices(t *testing.T) {
	scenario(t, func(s *stage) {
		s.ready("p", nicsOf, character{}, device("a"))
		s.run(one("pod", nicsOf, 1))
		s.Restart()
		s.delete("pod")
		s.note("%q", s.list())
		q := s.ready("q", nicsOf, character{}, device("a"))
		s.run(one("next", nicsOf, 1))
		s.noteCalls(q)
	})
}

func TestWhenTheStreamEndsNothingIsHealthyUntilThePluginRegistersAnew(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.ready("p", nicsOf, character{}, device("a"), device("b"))
		s.run(one("one", nicsOf, 2))
		p.endStreams()
		s.capacity(nicsOf, 2, 0)
		s.note("%q allocatable %v", s.list(), s.allocatable())
		s.run(one("early", nicsOf, 1))
		s.delete("early")
		must(s, s.register(request("p.sock", nicsOf)))
		s.capacity(nicsOf, 2, 2)
		s.delete("one")
		s.run(one("next", nicsOf, 2))
		s.noteCalls(p)
	})
}

func TestWhenThePluginDiesItsCapacityStays(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.ready("p", nicsOf, character{}, device("a"), device("b"))
		p.stop()
		s.capacity(nicsOf, 2, 0)
		q := s.ready("q", nicsOf, character{}, device("a"))
		s.run(one("one", nicsOf, 1))
		s.noteCalls(p)
		s.noteCalls(q)
	})
}

func TestASecondPluginTakesOverAndTheEndOfTheFirstEndsIt(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.ready("p", nicsOf, character{}, device("a"))
		q := s.ready("q", nicsOf, character{}, device("b"), device("c"))
		s.note("streams: %d %d", p.streams(), q.streams())
		s.run(one("both", nicsOf, 2))
		// The stream of the first is still read.
		p.list(device("b"), device("c"), device("d"))
		s.capacity(nicsOf, 3, 3)
		s.run(one("one", nicsOf, 1))
		p.endStreams()
		s.capacity(nicsOf, 3, 0)
		s.eventually("the second stream ends", func() string {
			if open := q.streams(); open != 0 {
				return "it is open"
			}
			return ""
		})
		must(s, s.register(request("q.sock", nicsOf)))
		s.capacity(nicsOf, 2, 2)
		s.noteCalls(p)
		s.noteCalls(q)
	})
}

func TestASecondRegistrationThatFailsHidesTheEndOfTheFirst(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.ready("p", nicsOf, character{}, device("a"))
		s.plug("mute", s.socket("mute.sock"), character{fail: map[string]string{"GetDevicePluginOptions": "ill"}})
		s.note("register: %s", verdict(s.register(request("mute.sock", nicsOf))))
		p.list(device("a"), device("b"))
		s.capacity(nicsOf, 2, 2)
		p.endStreams()
		s.eventually("the stream ends", func() string {
			if p.streams() != 0 {
				return "it is open"
			}
			return ""
		})
		// Nobody noticed: the connection is there, and the plugin is asked.
		s.run(one("pod", nicsOf, 2))
		s.capacity(nicsOf, 2, 2)
		s.noteCalls(p)
	})
}

// Why virtdp never drops a device that may be in an Allocate.
func TestADeviceThatIsDroppedDuringAllocateCrashesTheKubelet(t *testing.T) {
	drop := func(s *stage, start func()) {
		how := character{gate: make(chan struct{})}
		p := s.ready("p", nicsOf, how, device("a"))
		done := make(chan struct{})
		go func() {
			defer close(done)
			start()
		}()
		s.expect(p, 3)
		p.list()
		s.capacity(nicsOf, 0, 0)
		close(how.gate)
		<-done
	}
	pod := one("pod", nicsOf, 1)
	pod.Namespace, pod.UID = "default", "uid-pod"
	t.Run("kubelet", func(t *testing.T) {
		s := newStage(t)
		node := startReal(t, s.root(), 1).(*realNode)
		s.Node = node
		drop(s, func() {
			if answer, err := node.client.Admit(pod); err == nil {
				t.Errorf("it lives, and says %+v", answer)
			}
		})
		<-node.client.Ended()
	})
	t.Run("virtsim says so and refuses the pod", func(t *testing.T) {
		s := newStage(t)
		s.Node = startSim(t, s.root(), 1)
		drop(s, func() {
			if outcome := s.Start(pod); !strings.Contains(outcome.Refused, "a real kubelet crashes here") {
				t.Errorf("%s", outcome)
			}
		})
	})
}

func TestTheCheckpointOfOneIsReadByTheOther(t *testing.T) {
	folders := map[string][]byte{}
	for _, kind := range kinds {
		t.Run(sentence(kind.name+" writes"), func(t *testing.T) {
			s := newStage(t)
			s.Node = kind.start(t, s.root(), 1)
			s.ready("p", nicsOf, character{}, device("a", 0), device("b"))
			s.run(one("pod", nicsOf, 2))
			s.eventually("the checkpoint", func() string {
				text, err := os.ReadFile(s.socket("kubelet_internal_checkpoint"))
				if err != nil {
					return err.Error()
				}
				folders[kind.name] = text
				return ""
			})
		})
	}
	for _, kind := range kinds {
		for writer, text := range folders {
			t.Run(sentence(kind.name+" reads what "+writer+" wrote"), func(t *testing.T) {
				s := newStage(t)
				must(t, os.MkdirAll(filepath.Join(s.root(), "device-plugins"), 0o755))
				must(t, os.WriteFile(filepath.Join(s.root(), "device-plugins", "kubelet_internal_checkpoint"), text, 0o600))
				s.Node = kind.start(t, s.root(), 1)
				s.capacity(nicsOf, 0, 0)
				if _, known := s.Capacity()[nicsOf]; !known {
					t.Error("the checkpoint was not read")
				}
			})
		}
	}
}
