package devicemanager

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Whatever is restarted, and in whatever order: soon all NICs are there again, and each belongs to the pod that it was
// given to. What happens next is drawn from the seed; how long anything takes decides nothing.
func TestAfterAnyRestartAllIsAsItWas(t *testing.T) {
	seed := *seed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Logf("repeat this with -seed %d", seed)
			s := newStage(t)
			s.Node = kind.start(t, s.root(), 1)
			run := &random{stage: s, dice: rand.New(rand.NewPCG(seed, 0)), tree: sysfs(t), given: map[string][]string{}}
			run.agent = s.agent(run.tree)
			run.settle()
			for step := range *restarts {
				run.restart()
				run.settle()
				if run.dice.IntN(4) == 0 {
					run.podsChange(fmt.Sprintf("pod%d", step))
				}
				if t.Failed() {
					t.Fatalf("at step %d: %s", step, strings.Join(run.done, ", "))
				}
			}
			for name := range run.given {
				s.delete(name)
				delete(run.given, name)
			}
			run.settle()
			t.Logf("%d restarts: %v", *restarts, run.count)
		})
	}
}

type random struct {
	*stage
	dice  *rand.Rand
	tree  string
	agent *agent
	// given are the addresses that each pod was told.
	given map[string][]string
	done  []string
	count map[string]int
}

// restart restarts something.
func (r *random) restart() {
	r.Helper()
	signal := func() syscall.Signal {
		if r.dice.IntN(2) == 0 {
			return syscall.SIGKILL
		}
		return syscall.SIGTERM
	}
	kubelet := r.Restart
	if node, is := r.Node.(*realNode); is && r.dice.IntN(2) == 0 {
		kubelet = node.Kill
	}
	steps := []struct {
		name string
		do   func()
	}{
		{"agent", func() {
			r.agent.end(signal())
			r.agent = r.stage.agent(r.tree)
		}},
		{"kubelet", kubelet},
		{"both", func() {
			r.agent.end(signal())
			kubelet()
			r.agent = r.stage.agent(r.tree)
		}},
		{"kubelet beside agent", func() {
			r.agent.end(signal())
			r.agent = r.stage.agent(r.tree)
			kubelet()
		}},
		{"hand over", func() {
			next := r.stage.agent(r.tree)
			if r.dice.IntN(2) == 0 {
				next.registered(1)
			}
			r.agent.end(signal())
			r.agent = next
		}},
		{"second agent that goes again", func() {
			second := r.stage.agent(r.tree)
			if r.dice.IntN(2) == 0 {
				second.registered(1)
			}
			second.end(signal())
		}},
	}
	step := steps[r.dice.IntN(len(steps))]
	r.done = append(r.done, step.name)
	if r.count == nil {
		r.count = map[string]int{}
	}
	r.count[step.name]++
	step.do()
}

// settle waits until the node offers everything, and checks who has what.
func (r *random) settle() {
	r.Helper()
	r.eventually("all NICs are there", func() string {
		now := r.Capacity()[virt]
		if now.Capacity != int64(len(nics)) || now.Allocatable != int64(len(nics)) {
			return fmt.Sprintf("%+v, after %s", now, strings.Join(r.done, ", "))
		}
		return ""
	})
	r.eventually("each NIC belongs to whom it was given", func() string {
		users := r.inUse()
		count := 0
		for name, addresses := range r.given {
			count += len(addresses)
			for _, address := range addresses {
				if users[address] != "default/"+name {
					return fmt.Sprintf("%s of %s belongs to %q", address, name, users[address])
				}
			}
		}
		if count != len(users) {
			return fmt.Sprintf("%d were given, %d are in use", count, len(users))
		}
		return ""
	})
}

// podsChange deletes a pod or starts one.
func (r *random) podsChange(name string) {
	r.Helper()
	var names []string
	free := len(nics)
	for name, addresses := range r.given {
		names = append(names, name)
		free -= len(addresses)
	}
	slices.Sort(names)
	if free == 0 || len(names) > 0 && r.dice.IntN(2) == 0 {
		victim := names[r.dice.IntN(len(names))]
		r.stage.delete(victim)
		delete(r.given, victim)
		return
	}
	pod := one(name, virt, int64(1+r.dice.IntN(free)))
	r.given[name] = addresses(r.stage.atLast(pod))
}
