package devicemanager

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// registry is a path in plugins_registry, which is there a little later than the rest.
func (s *stage) registry(name string) string {
	s.Helper()
	folder := filepath.Join(s.Root(), "plugins_registry")
	s.eventually("plugins_registry", func() string {
		if isGone(folder) {
			return "it is not there"
		}
		return ""
	})
	return filepath.Join(folder, name)
}

// noteInOrder is noteCalls for a plugin in the registry: ListAndWatch is called beside NotifyRegistrationStatus, and which
// of the two comes first is left to chance.
func (s *stage) noteInOrder(p *plugin) {
	streams := 0
	for _, call := range p.taken() {
		if strings.HasPrefix(call, "ListAndWatch") {
			streams++
		} else {
			s.note("plugin %s: %s", p.name, call)
		}
	}
	s.note("plugin %s: %d streams", p.name, streams)
}

func info(name, endpoint string) *registration.PluginInfo {
	return &registration.PluginInfo{
		Type: registration.DevicePlugin, Name: name, Endpoint: endpoint, SupportedVersions: []string{"v1beta1"},
	}
}

func TestASocketInTheRegistryIsAskedWithItsPathAsAuthority(t *testing.T) {
	scenario(t, func(s *stage) {
		// The socket of the plugin itself is dialled as localhost, that of the registry by its escaped path.
		p := s.plug("p", filepath.Join(s.Root(), "p.sock"), character{}, device("a"))
		plain := s.plug("plain", s.registry("plain.sock"), character{info: info(nicsOf, p.path(s))})
		s.expect(plain, 2)
		s.capacity(nicsOf, 1, 1)
		s.noteInOrder(plain)
		at := s.plug("at", s.registry("nics@node-reg.sock"), character{info: info("example.com/at", "")}, device("b"))
		s.expect(at, 4)
		s.capacity("example.com/at", 1, 1)
		s.noteInOrder(at)
		must(s, os.Mkdir(s.registry("below"), 0o755))
		odd := s.plug("odd", s.registry("below/a b~!$&'()*+,;=:ü.sock"), character{info: info("example.com/odd", "")}, device("c"))
		s.expect(odd, 4)
		s.capacity("example.com/odd", 1, 1)
		s.noteInOrder(odd)
		s.run(one("pod", nicsOf, 1))
		s.noteInOrder(p)
	})
}

func (p *plugin) path(s *stage) string { return filepath.Join(s.Root(), p.name+".sock") }

func TestTheRegistryTellsAPluginWhyItIsRefused(t *testing.T) {
	scenario(t, func(s *stage) {
		for index, refused := range []*registration.PluginInfo{
			{Type: "Other", Name: nicsOf, SupportedVersions: []string{"v1beta1"}},
			{Type: registration.DevicePlugin, Name: nicsOf, SupportedVersions: []string{"v1", "v2"}},
			{Type: registration.DevicePlugin, Name: nicsOf},
			info("nic", ""),
		} {
			name := fmt.Sprintf("p%d", index)
			p := s.plug(name, s.registry(name+"@x.sock"), character{info: refused})
			s.expect(p, 2)
			for _, call := range p.taken()[:2] {
				s.note("plugin %s: %s", name, call)
			}
			p.stop()
		}
		mute := s.plug("mute", filepath.Join(s.Root(), "mute.sock"), character{fail: map[string]string{"GetDevicePluginOptions": "ill"}})
		p := s.plug("p", s.registry("p@x.sock"), character{info: info(nicsOf, mute.path(s))})
		s.expect(p, 2)
		for _, call := range p.taken()[:2] {
			s.note("plugin p: %s", call)
		}
	})
}

func TestTheRegistryAsksAgainUntilAPluginIsTaken(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.plug("p", s.registry("p@x.sock"), character{info: info(nicsOf, ""), fail: map[string]string{"GetInfo": "not yet"}}, device("a"))
		s.expect(p, 2)
		p.mutex.Lock()
		p.how.fail = nil
		p.mutex.Unlock()
		s.capacity(nicsOf, 1, 1)
	})
}

func TestTheRegistryForgetsAPluginWithItsSocket(t *testing.T) {
	scenario(t, func(s *stage) {
		for round := range 2 {
			p := s.plug(fmt.Sprintf("p%d", round), s.registry("p@x.sock"), character{info: info(nicsOf, "")}, device("a"))
			s.capacity(nicsOf, 1, 1)
			must(s, os.Remove(s.registry("p@x.sock")))
			s.capacity(nicsOf, 1, 0)
			s.noteInOrder(p)
			p.stop()
		}
	})
}

func TestAPluginInTheRegistryWhoseStreamEndsIsNotAskedAgain(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.plug("p", s.registry("p@x.sock"), character{info: info(nicsOf, "")}, device("a"))
		s.capacity(nicsOf, 1, 1)
		p.endStreams()
		s.capacity(nicsOf, 1, 0)
		// Another socket is asked after the first could have been.
		q := s.plug("q", s.registry("q@x.sock"), character{info: info("example.com/other", "")}, device("b"))
		s.capacity("example.com/other", 1, 1)
		s.noteInOrder(p)
		s.noteInOrder(q)
	})
}

func TestAtItsStartTheKubeletAsksWhoIsInTheRegistryAlready(t *testing.T) {
	scenario(t, func(s *stage) {
		p := s.plug("p", s.registry("p@x.sock"), character{info: info(nicsOf, "")}, device("a"))
		s.capacity(nicsOf, 1, 1)
		s.run(one("pod", nicsOf, 1))
		s.Restart()
		s.expect(p, 9)
		s.capacity(nicsOf, 1, 1)
		s.note("%q", s.list())
		s.noteInOrder(p)
	})
}

func TestSocketsThatAreHiddenAndFilesThatAreNoneAreLeftAlone(t *testing.T) {
	scenario(t, func(s *stage) {
		hidden := s.plug("hidden", s.registry(".hidden@x.sock"), character{info: info("example.com/hidden", "")}, device("a"))
		s.touch(s.registry("file"))
		p := s.plug("p", s.registry("p@x.sock"), character{info: info(nicsOf, "")}, device("a"))
		s.capacity(nicsOf, 1, 1)
		s.noteInOrder(hidden)
		s.note("%d calls", len(p.taken()))
	})
}
