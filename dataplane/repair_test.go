package dataplane

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// besieged is a plane with two workloads, one flow allowed, under traffic.
func besieged(t *testing.T, options ...func(*Config)) (p *plane, a, b *workload, rs *bocage.Ruleset, l *load) {
	p = newPlane(t, options...)
	a, b = p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	rs = ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, a, b)
	must(t, p.Apply(rs))
	return p, a, b, rs, startLoad(t, a, b)
}

// more waits until traffic has gone on for a while.
func (l *load) more(t *testing.T, what string) {
	t.Helper()
	sent := l.sent.Load()
	hosttest.Await(t, what, func() bool { return l.sent.Load() > sent+50 })
}

// repaired repairs, and wants to be told some words, and of nothing the next time.
func (p *plane) repaired(says ...string) {
	p.t.Helper()
	var done []string
	p.in(func() (err error) { done, err = p.Repair(); return err })
	for _, words := range says {
		if !slices.ContainsFunc(done, func(d string) bool { return strings.Contains(d, words) }) {
			p.t.Errorf("repaired %q, want what says %q", done, words)
		}
	}
	if len(says) == 0 && len(done) > 0 {
		p.t.Errorf("repaired %q where nothing was wrong", done)
	}
	p.in(func() (err error) { done, err = p.Repair(); return err })
	if len(done) > 0 {
		p.t.Errorf("repaired %q again", done)
	}
}

// whole wants everything pinned and attached, as another process sees it.
func (p *plane) whole(links int) {
	p.t.Helper()
	var e Examination
	p.in(func() (err error) { e, err = Examine(p.cfg); return err })
	if len(e.Layouts) != 1 || len(e.Layouts[0].MissingMaps) > 0 || len(e.Layouts[0].Links) != links {
		p.t.Errorf("layouts %+v, want one with %d links", e.Layouts, links)
	}
	for _, layout := range e.Layouts {
		for _, l := range layout.Links {
			if !l.Attached {
				p.t.Errorf("link %+v", l)
			}
		}
	}
}

// Pins that are removed by hand, a bpffs that is unmounted: no packet is lost, all
// is put back, and the next process takes it over.
func TestRootRepairPins(t *testing.T) {
	t.Parallel()
	p, a, b, _, l := besieged(t)
	p.repaired()
	must(t, os.Remove(filepath.Join(p.pins.mapsDir(), "cells")))
	must(t, os.Remove(filepath.Join(p.pins.linksDir(), linkName(a.ifindex, programFrom))))
	l.more(t, "traffic without pins")
	p.repaired("map cells", "pin of from_workload at "+a.link)
	p.whole(4)

	must(t, unix.Unmount(p.cfg.PinDir, unix.MNT_DETACH))
	if host.IsBPFFS(p.cfg.PinDir) {
		t.Fatal("it is still mounted")
	}
	l.more(t, "traffic without a bpffs")
	if _, err := dial(t, b, a.v4, 80, short); !isTimeout(err) {
		t.Errorf("refused flow without a bpffs: %v, want a timeout", err)
	}
	p.repaired("had been unmounted", "every map's pin", "pin of to_workload")
	p.whole(4)

	must(t, os.RemoveAll(p.pins.dir()))
	p.repaired("every map's pin", "pin of from_workload")
	p.whole(4)
	other := p.cfg
	p.in(func() error {
		if d, err := Open(other); err == nil || !strings.Contains(err.Error(), "another process has it open") {
			t.Errorf("a second agent in one folder: %v, %v", d, err)
		}
		return nil
	})
	must(t, p.Close())
	l.more(t, "traffic without a process")
	p.open()
	if g := p.Generation(); g != 1 {
		t.Errorf("generation %d is taken over, want 1", g)
	}
	l.end(t)
}

// A program that is taken off an interface by hand comes back, and judges.
func TestRootRepairLinks(t *testing.T) {
	t.Parallel()
	p, a, b, _, l := besieged(t)
	echo(t, a, a.v4, 80)
	all, err := p.pins.links()
	must(t, err)
	for _, l := range all {
		pinned, err := link.LoadPinnedLink(l.path, nil)
		must(t, err)
		must(t, pinned.Detach())
		must(t, pinned.Close())
	}
	must(t, ping(mustDial(t, b, a.v4, 80), long)) // nobody is there to refuse it
	p.repaired("to_workload had been detached from "+a.link, "from_workload had been detached from "+b.link)
	p.whole(4)
	if _, err := dial(t, b, a.v4, 80, short); !isTimeout(err) {
		t.Errorf("refused flow after the repair: %v, want a timeout", err)
	}
	must(t, host.DeleteLink(p.namespace, b.link))
	p.repaired() // an interface that goes is nobody's fault
	close(l.stop)
}

// Pins that are removed while no process runs: the next one goes on from what the
// programs hold, and loses nothing.
func TestRootOpenBrokenState(t *testing.T) {
	t.Parallel()
	p, a, b, rs, l := besieged(t)
	must(t, p.Close())
	must(t, os.Remove(filepath.Join(p.pins.mapsDir(), "cells")))
	must(t, os.Remove(filepath.Join(p.pins.mapsDir(), "flows")))
	p.open()
	if _, err := dial(t, b, a.v4, 80, short); !isTimeout(err) {
		t.Errorf("refused flow before a ruleset: %v, want a timeout", err)
	}
	p.attach(a, b)
	l.more(t, "traffic with what is broken")
	must(t, p.Apply(rs))
	l.more(t, "traffic with what is whole")
	p.whole(4)
	if _, err := dial(t, b, a.v4, 80, short); !isTimeout(err) {
		t.Errorf("refused flow after the ruleset: %v, want a timeout", err)
	}
	l.end(t)
}

// Upgrade to another program and to another layout, the way back from both, and
// removal: no packet is lost and no connection, and nothing is left.
func TestRootUpgradeAndBack(t *testing.T) {
	t.Parallel()
	p, a, b, rs, l := besieged(t, unshelved)
	ours := map[host.BPFObject]bool{}
	note := func() {
		for _, m := range mapsOf(p.objects) {
			info, err := m.Info()
			must(t, err)
			id, _ := info.ID()
			ours[host.BPFObject{Kind: "map", ID: uint32(id), Name: info.Name}] = true
		}
		for _, program := range []*ebpf.Program{p.objects.FromWorkload, p.objects.ToWorkload} {
			info, err := program.Info()
			must(t, err)
			id, _ := info.ID()
			ours[host.BPFObject{Kind: "program", ID: uint32(id), Name: info.Name}] = true
		}
	}
	note()
	flows, answers := p.cfg.FlowEntries, p.cfg.AnswersPerSecond
	for _, version := range []func(*Config){
		func(c *Config) { c.AnswersPerSecond = 17 },      // another program
		func(c *Config) { c.AnswersPerSecond = answers }, // and back
		func(c *Config) { c.FlowEntries = 2 * flows },    // another layout
		func(c *Config) { c.FlowEntries = flows },        // and back
	} {
		must(t, p.Close())
		l.more(t, "traffic without a process")
		version(&p.cfg)
		p.open()
		note()
		p.attach(a, b)
		must(t, p.Apply(rs))
		l.more(t, "traffic with the next version")
		p.whole(4)
		if _, err := dial(t, b, a.v4, 80, short); !isTimeout(err) {
			t.Errorf("refused flow: %v, want a timeout", err)
		}
	}
	must(t, p.Close())
	must(t, Remove(p.cfg.PinDir))
	l.more(t, "traffic without enforcement")
	l.end(t)
	if _, err := os.Stat(p.cfg.PinDir); err == nil {
		t.Errorf("%s is left", p.cfg.PinDir)
	}
	hosttest.Await(t, "the kernel to let go", func() bool {
		after, err := host.BPFObjects()
		must(t, err)
		return !slices.ContainsFunc(after, func(o host.BPFObject) bool { return ours[o] })
	})
}
