package dataplane

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
)

// A process that is killed before any step of a move to another layout, or of the way
// back, costs no packet and no connection, lets nobody in, and the next one goes on
// from there, whichever version it is.
func TestRootKilledAtEveryStepOfAMove(t *testing.T) {
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	rs := ruleset(7, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, a, b)
	must(t, p.Apply(rs))
	l := startLoad(t, a, b)
	must(t, p.Close())
	const older, newer = 1, 2
	flows := p.cfg.FlowEntries
	all := order{Attachments: []Attachment{{Ifindex: a.ifindex, Port: a.port}, {Ifindex: b.ifindex, Port: b.port}}, Ruleset: rs}
	for _, step := range []struct {
		version int
		dies    string
		time    int
	}{
		{newer, "draft", 1}, {newer, "publish", 1}, {newer, "word", 1},
		{newer, "adopt", 1}, {newer, "adopted", 1}, {newer, "adopt", 2}, // each goes on where the one before ended
		{older, "swap", 2}, {older, "adopted", 1}, // back from there
		{newer, "adopted", 1}, {newer, "remove", 1}, {older, "adopted", 4}, {older, "remove", 1}, {newer, "", 0},
	} {
		p.cfg.FlowEntries = step.version * flows
		all.Dies, all.Time = step.dies, step.time
		kill, died := p.child(all)
		switch {
		case step.dies == "" && died != nil:
			t.Fatal(died)
		case step.dies != "" && (died == nil || !strings.Contains(died.Error(), "signal: killed")):
			t.Errorf("version %d before %s %d: %v, and it was to be killed", step.version, step.dies, step.time, died)
		}
		kill()
		l.more(t, "traffic after it was killed before "+step.dies)
		if _, err := dial(t, b, a.v4, 80, short); !isTimeout(err) {
			t.Errorf("refused flow after version %d was killed before %s %d: %v, want a timeout", step.version, step.dies, step.time, err)
		}
	}
	p.open()
	if got := p.Attached(); p.Generation() != 7 || len(got) != 2 || got[1].Port.Identity != 102 {
		t.Errorf("generation %d, attached %+v", p.Generation(), got)
	}
	p.whole(4)
	if layouts, err := filepath.Glob(filepath.Join(p.cfg.PinDir, "*", "map")); err != nil || len(layouts) != 1 {
		t.Errorf("layouts left: %v %v", layouts, err)
	}
	l.end(t)
}

// What began under the programs of another layout goes on: answers to datagrams, which
// nothing but the row of their flow allows, and a rate that is used up stays so.
func TestRootFlowsMoveAlong(t *testing.T) {
	for name, change := range map[string]func(*plane) error{
		"another layout": func(p *plane) error { p.cfg.FlowEntries *= 2; return nil },
		"put aside":      func(p *plane) error { return os.Remove(filepath.Join(p.pins.mapsDir(), "cells")) },
	} {
		t.Run(name, func(t *testing.T) { flowsMoveAlong(t, change) })
	}
}

func flowsMoveAlong(t *testing.T, change func(*plane) error) {
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	rs := ruleset(7, []bocage.Rule{allowUDP(21, 22)}, a, b)
	must(t, p.Apply(rs))
	var server net.PacketConn
	must(t, host.In(b.namespace, func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(b.v4, 9000).String())
		return err
	}))
	t.Cleanup(func() { server.Close() })
	const clients = 50
	var conns [clients]net.Conn
	var peers [clients]net.Addr
	buffer := make([]byte, 64)
	for i := range conns {
		must(t, host.In(a.namespace, func() (err error) {
			conns[i], err = net.Dial("udp", server.LocalAddr().String())
			return err
		}))
		t.Cleanup(func() { conns[i].Close() })
		_, err := conns[i].Write([]byte("question"))
		must(t, err)
		must(t, server.SetReadDeadline(time.Now().Add(long)))
		_, peers[i], err = server.ReadFrom(buffer)
		must(t, err)
	}
	quota := bpf.KernelQuotaKey{Limit: 5, Source: 101, Destination: 102}
	must(t, p.objects.Quotas.Put(quota, bpf.KernelQuota{Due: 77}))
	must(t, p.Close())

	must(t, change(p))
	p.open()
	p.attach(a, b)
	must(t, p.Apply(rs))
	p.whole(4)
	for i := range conns {
		_, err := server.WriteTo([]byte("answer"), peers[i])
		must(t, err)
		must(t, conns[i].SetReadDeadline(time.Now().Add(long)))
		if _, err := conns[i].Read(buffer); err != nil {
			t.Fatalf("the answer to question %d: %v", i, err)
		}
	}
	var due bpf.KernelQuota
	if err := p.objects.Quotas.Lookup(quota, &due); err != nil || due.Due != 77 {
		t.Errorf("the rate is used up until %d, %v", due.Due, err)
	}
	// Nobody else gets in by it.
	stranger := mustListen(t, b)
	_, err := stranger.WriteTo([]byte("answer"), peers[0])
	must(t, err)
	must(t, conns[0].SetReadDeadline(time.Now().Add(short)))
	if n, err := conns[0].Read(buffer); err == nil {
		t.Errorf("%d bytes came from a stranger", n)
	}
	held := uint64(0)
	for _, ifindex := range []uint32{a.ifindex, b.ifindex} {
		var row bpf.KernelHolding
		if err := p.objects.Holdings.Lookup(ifindex, &row); err == nil {
			held += row.Rows
		}
	}
	if held != clients {
		t.Errorf("%d rows are held of %d", held, clients)
	}
}

// A flow that was taken over and is over since stays so when the rest of the links move;
// what began meanwhile is taken over.
func TestRootFlowsMoveOnce(t *testing.T) {
	t.Parallel()
	p := newPlane(t, unshelved)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	rs := ruleset(7, []bocage.Rule{allowTCP(21, 22, 9000), allowUDP(22, 21)}, a, b)
	must(t, p.Apply(rs))
	// A connection that is established, since another kind might be over before all is loaded.
	opens := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 4000, dport: 9000, tcpFlags: syn}
	accepts, settles := answerTo(opens), opens
	accepts.from, accepts.to, accepts.tcpFlags, settles.tcpFlags = [6]byte(b.mac), gatewayMAC(b), syn|ack, ack
	for _, f := range []struct {
		frame
		at *workload
	}{{opens, a}, {accepts, b}, {settles, a}} {
		if returned := p.judgedHere(true, f.at.ifindex, f.bytes()); returned != next {
			t.Fatalf("a connection was refused: %d", returned)
		}
	}
	// It had its last packet a while ago.
	memory, err := mapMemory(p.objects.Flows, unix.PROT_READ|unix.PROT_WRITE)
	must(t, err)
	for _, row := range (&flowTable{rows: unsafe.Slice((*bpf.KernelFlow)(unsafe.Pointer(&memory[0])), int(p.objects.Flows.MaxEntries())*ways)}).live {
		row.Seen -= 2 * lateBeats
	}
	must(t, unix.Munmap(memory))
	older, err := p.objects.FromWorkload.Clone()
	must(t, err)
	t.Cleanup(func() { older.Close() })
	must(t, p.Close())

	p.cfg.FlowEntries *= 2
	p.open()
	p.attach(a)
	must(t, p.Apply(rs))
	here := func() (ports []uint16) {
		for _, row := range p.flows.live {
			ports = append(ports, min(row.Key.Port[0], row.Key.Port[1]))
		}
		return ports
	}
	if got := here(); len(got) != 1 || len(p.moves) != 2 {
		t.Fatalf("flows %v were taken over, %d links wait", got, len(p.moves))
	}
	_, err = p.endFlows(a.ifindex, 0)
	must(t, err)
	if got := here(); len(got) != 0 {
		t.Fatalf("flows %v live on", got)
	}
	fresh := accepts
	fresh.protocol, fresh.sport, fresh.dport, fresh.payload = bocage.ProtocolUDP, 4001, 9001, 8
	p.in(func() error {
		returned, err := older.Run(&ebpf.RunOptions{Data: fresh.bytes(), Context: skb{Ifindex: b.ifindex}})
		if err == nil && returned != next {
			err = fmt.Errorf("a flow was refused by the other layout: %d", returned)
		}
		return err
	})
	p.attach(b)
	if got := here(); len(got) != 1 || got[0] != 4001 || len(p.moves) != 0 {
		t.Errorf("flows %v are there, %d links wait", got, len(p.moves))
	}
}

// mustListen is a socket of another port.
func mustListen(t *testing.T, w *workload) (socket net.PacketConn) {
	t.Helper()
	must(t, host.In(w.namespace, func() (err error) {
		socket, err = net.ListenPacket("udp", netip.AddrPortFrom(w.v4, 9001).String())
		return err
	}))
	t.Cleanup(func() { socket.Close() })
	return socket
}

// Links of another layout stay with a higher generation that is in force there, until
// one as high is in force here: what comes first may only be what is gone back to.
func TestRootMoveWaitsForTheGeneration(t *testing.T) {
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	closed, open := ruleset(7, nil, a, b), ruleset(8, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, a, b)
	must(t, p.Apply(closed))
	open.ConfirmBy = time.Now().Add(time.Hour)
	must(t, p.Apply(open))
	l := startLoad(t, a, b)
	must(t, p.Close())

	p.cfg.FlowEntries *= 2
	p.open()
	p.attach(a, b)
	must(t, p.Apply(closed)) // the kernel must have what it may go back to
	l.more(t, "traffic while the first of two is in force")
	if len(p.moves) != 4 {
		t.Errorf("%d of 4 links wait", len(p.moves))
	}
	must(t, p.Apply(open))
	if len(p.moves) != 0 {
		t.Errorf("%d links wait", len(p.moves))
	}
	l.more(t, "traffic after the move")
	l.end(t)
	p.whole(4)
	must(t, p.Close())

	// One that never comes is not waited for forever.
	p.cfg.FlowEntries /= 2
	p.open()
	p.attach(a, b)
	must(t, p.Apply(closed))
	p.aheadSince = time.Now().Add(-moveWait)
	_, err := p.Repair()
	must(t, err)
	if len(p.moves) != 0 {
		t.Errorf("%d links still wait", len(p.moves))
	}
	if _, err := dial(t, a, b.v4, 80, short); !isTimeout(err) && !errors.Is(err, net.ErrClosed) {
		t.Errorf("what is in force now refuses it: %v", err)
	}
}

// The text that says how rows are written names it, and nothing else does.
func TestWritingOf(t *testing.T) {
	own := writingOf(bpf.Contract, bpf.HeaderOfTags, bpf.HeaderOfTracks)
	for name, c := range map[string]struct {
		old, new string
		same     bool
	}{
		"nothing":        {"", "", true},
		"another struct": {"struct quota_key {", "struct quota_key { // other", true},
		"a flag":         {"#define FLOW_TO 0x2", "#define FLOW_TO 0x800", false},
		"a field":        {"__u32 topology; //", "__u32 shape; //", false},
		"the key":        {"struct flow_key {", "struct flow_key {\n\t__u64 more;", false},
		"a link":         {"#define LINK_SERVICE 0xfff000", "#define LINK_SERVICE 0xffe000", false},
		"another flag":   {"#define FLOW_PICKED_UP FLOW_HEED_SOURCE", "#define FLOW_PICKED_UP FLOW_ASKS", false},
		"a function":     {"bool may_live(", "bool is_living(", true},
		"a unit":         {"#define ERA_SHIFT 26", "#define ERA_SHIFT 27", false},
	} {
		texts, found := []string{bpf.Contract, bpf.HeaderOfTags, bpf.HeaderOfTracks}, c.old == ""
		for i, text := range texts {
			texts[i] = strings.Replace(text, c.old, c.new, 1)
			found = found || texts[i] != text
		}
		if !found {
			t.Fatalf("%s: nothing has %q", name, c.old)
		}
		if (writingOf(texts[0], texts[1:]...) == own) != c.same {
			t.Errorf("%s: the same name is %v", name, !c.same)
		}
	}
}
