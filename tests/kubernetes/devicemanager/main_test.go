// Package devicemanager drives device plugins by the kubelet's own device manager, and by virtsim, and holds the one
// against the other. `cargo xtask kubernetes --only devicemanager` runs it as it has to be run: in network and mount
// namespaces of its own, with VIRTDP and VIRTSIM telling where the two programs are.
package devicemanager

import (
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"virtnet/tests/kubernetes/devicemanager/kubelet"
)

var (
	seed = flag.Uint64("seed", 0, "repeat the random restarts of this seed; 0 takes a new one")
	// What takes long is never what fails.
	patience = flag.Duration("patience", time.Minute, "how long anything may take before a test gives up")
	restarts = flag.Int("restarts", 200, "how many restarts at random")
)

func TestMain(m *testing.M) {
	if config, given := os.LookupEnv(kubelet.Variable); given {
		if err := kubelet.Main(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// prepare makes the NICs that virtdp finds. A test never runs where it could meet the machine's own.
func prepare() error {
	for _, program := range []string{"VIRTDP", "VIRTSIM"} {
		path := os.Getenv(program)
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%s does not say where the program is: %w", program, err)
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, link := range links {
		if link.Name != "lo" {
			return fmt.Errorf("%s is here: run this in a network namespace of its own, see docs/testing.md", link.Name)
		}
	}
	return makeLinks()
}

func program(variable string) string { return os.Getenv(variable) }

// sentence makes a test's name of a scenario's.
func sentence(text string) string { return strings.ReplaceAll(text, " ", "_") }
