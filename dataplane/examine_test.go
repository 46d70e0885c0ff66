package dataplane

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
)

// What lies pinned is told as it is, beside a running agent, and spoiled things
// as what they are.
func TestRootExamine(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	look := func() Examination {
		t.Helper()
		var e Examination
		p.in(func() (err error) { e, err = Examine(p.cfg); return err })
		return e
	}
	e := look()
	if len(e.Layouts) != 1 || !e.Layouts[0].Current || len(e.Layouts[0].MissingMaps) != 0 || len(e.Layouts[0].Links) != 4 {
		t.Fatalf("layouts %+v", e.Layouts)
	}
	for _, l := range e.Layouts[0].Links {
		if !l.Attached || l.Others != 0 || l.Interface == "" {
			t.Errorf("link %+v", l)
		}
	}
	rows := func(e Examination, table string) uint32 {
		i := slices.IndexFunc(e.Fill, func(f Fill) bool { return f.Table == table })
		if i < 0 || e.Fill[i].Max == 0 {
			t.Fatalf("table %s is not among %+v", table, e.Fill)
		}
		return e.Fill[i].Rows
	}
	if n := rows(e, "ports"); n != 2 {
		t.Errorf("%d ports, want 2", n)
	}
	before := rows(e, "flows")
	syn := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 40000, dport: 80, tcpFlags: syn}
	p.in(func() error { p.judged(true, a.ifindex, syn.bytes()); return nil })
	if n := rows(look(), "flows"); n != before+1 {
		t.Errorf("%d flows, want %d", n, before+1)
	}
	// Somebody's program ahead, and one behind.
	p.in(func() error {
		for program, anchor := range map[*ebpf.Program]link.Anchor{p.objects.FromDecoy: link.Head(), p.objects.FromEngineInside: link.Tail()} {
			other, err := link.AttachTCX(link.TCXOptions{Interface: int(a.ifindex), Program: program, Attach: ebpf.AttachTCXIngress, Anchor: anchor})
			if err != nil {
				return err
			}
			t.Cleanup(func() { other.Close() })
		}
		return nil
	})
	e = look()
	for _, l := range e.Layouts[0].Links {
		if l.Ifindex == a.ifindex && l.Program == programFrom && (l.Others != 2 || l.Ahead != 1) {
			t.Errorf("beside others: %+v", l)
		}
	}
	must(t, p.Close())
	must(t, os.Remove(filepath.Join(p.pins.mapsDir(), "cells")))
	pinned, err := link.LoadPinnedLink(filepath.Join(p.pins.linksDir(), linkName(b.ifindex, programTo)), nil)
	must(t, err)
	must(t, pinned.Detach())
	must(t, pinned.Close())
	must(t, os.Mkdir(filepath.Join(p.cfg.PinDir, "0123456789abcdef"), 0o700))
	must(t, os.Mkdir(filepath.Join(p.cfg.PinDir, "draft-0123456789abcdef"), 0o700))
	e = look()
	if len(e.Layouts) != 3 {
		t.Fatalf("layouts %+v", e.Layouts)
	}
	for _, l := range e.Layouts {
		if l.Draft != (l.Name == "draft-0123456789abcdef") || l.Current != (l.Name == p.pins.layout) {
			t.Errorf("layout %+v", l)
		}
		if l.Current && !slices.Equal(l.MissingMaps, []string{"cells"}) {
			t.Errorf("missing maps %v", l.MissingMaps)
		}
		for _, pinned := range l.Links {
			if pinned.Attached == (pinned.Ifindex == b.ifindex && pinned.Program == programTo) {
				t.Errorf("link %+v", pinned)
			}
		}
	}
	if _, err := Examine(Config{PinDir: filepath.Join(host.BPFFS, "nothing-here")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
	if _, err := Examine(Config{PinDir: t.TempDir()}); err == nil {
		t.Error("a folder that is in no bpffs is examined")
	}
}
