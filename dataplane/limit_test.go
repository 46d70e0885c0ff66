package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// decideLimited is a decision that owes a rate.
const decideLimited = bocage.DecisionID(30)

// owe gives a ruleset the decision that owes a rate.
func owe(rs *bocage.Ruleset, rate string) {
	rs.Decisions = append(rs.Decisions, bocage.Decision{ID: decideLimited, Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule,
		Duties: &bocage.Duties{Rate: rate}, By: []bocage.Ref{{Kind: "Guardrail", Name: "g", Field: "spec.require.rate"}}})
}

func limitedTCP(from, to bocage.Group, port uint16) bocage.Rule {
	r := allowTCP(from, to, port)
	r.Decision = decideLimited
	return r
}

func limitedUDP(from, to bocage.Group) bocage.Rule {
	r := allowUDP(from, to)
	r.Decision = decideLimited
	return r
}

// The arithmetic in the kernel is that of the model, at times and rates of any size.
func TestRootTurnsAreTheModels(t *testing.T) {
	t.Parallel()
	hosttest.Root(t)
	var objects bpf.FrameObjects
	must(t, bpf.LoadFrameObjects(&objects, nil))
	t.Cleanup(func() { objects.Close() })
	r := newRandom(t)
	epoch := time.Unix(0, 0)
	taken := 0
	const rounds = 20_000
	for range rounds {
		at := pick(r, []int64{1, r.Int64N(1 << 20), r.Int64N(1 << 50), r.Int64N(1 << 61)})
		every := pick(r, []int64{1, 1001, r.Int64N(int64(time.Second)) + 1, int64(time.Second)})
		due := max(0, at+pick(r, []int64{-at, 0, 1, -1, int64(bocage.LimitAhead), int64(bocage.LimitAhead) + 1,
			int64(bocage.LimitAhead) - 1, r.Int64N(int64(time.Second)), -r.Int64N(int64(time.Second)), r.Int64N(1 << 60)}))
		want, may := bocage.Limit{Every: time.Duration(every)}.Take(epoch.Add(time.Duration(due)), epoch.Add(time.Duration(at)))
		in := binary.NativeEndian.AppendUint64(nil, uint64(due))
		in = binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(in, uint64(at)), uint64(every))
		run := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in))}
		returned, err := objects.TakeOne.Run(&run)
		must(t, err)
		got := epoch.Add(time.Duration(binary.NativeEndian.Uint64(run.DataOut)))
		if (returned == 1) != may || !got.Equal(want) {
			t.Fatalf("at %d, due %d, every %d: the kernel says %d and due %d, the model %v and %d", at, due, every, returned, got.UnixNano(), may, want.UnixNano())
		}
		taken += int(returned)
	}
	if taken < rounds/10 || taken > rounds*9/10 {
		t.Errorf("%d of %d turns taken: this tests nothing", taken, rounds)
	}
}

// coarse reads the clock that packets are stamped by.
func coarse() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts)
	return ts.Nano()
}

// quotasNow reads what is remembered of who has begun flows.
func (p *plane) quotasNow() map[bpf.KernelQuotaKey]bpf.KernelQuota {
	p.t.Helper()
	all := map[bpf.KernelQuotaKey]bpf.KernelQuota{}
	for key, err := range keysIn[bpf.KernelQuotaKey](p.objects.Quotas) {
		must(p.t, err)
		var quota bpf.KernelQuota
		must(p.t, p.objects.Quotas.Lookup(key, &quota))
		all[key] = quota
	}
	return all
}

func (p *plane) setQuotas(all map[bpf.KernelQuotaKey]bpf.KernelQuota) {
	p.t.Helper()
	must(p.t, clearRows(p.objects.Quotas, func(bpf.KernelQuotaKey) bool { return true }))
	for key, quota := range all {
		must(p.t, p.objects.Quotas.Put(key, quota))
	}
}

// postpone has everybody's next turn come so much later.
func (p *plane) postpone(by time.Duration) {
	p.t.Helper()
	all := p.quotasNow()
	for key, quota := range all {
		quota.Due = uint64(int64(quota.Due) + by.Nanoseconds())
		all[key] = quota
	}
	p.setQuotas(all)
}

// The programs agree with Meter.Open about every flow that begins, at times that the
// test makes up: what is remembered is moved against the kernel's clock. Rulesets come
// and go meanwhile, and with them everything but the limits themselves.
func TestRootLimitsAreTheModels(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	ws := []*workload{p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 21), p.workload(4, 104, 23)}
	p.attach(ws...)
	r := newRandom(t)
	rates := []string{"1/s", "4/s", "10/s", "20/s"}
	var rs *bocage.Ruleset
	renew := func(generation uint64) {
		rs = ruleset(generation, nil, ws...)
		rs.Groups[2].Enforce = r.IntN(2) == 0
		for i, rate := range rates { // numbered anew each time
			rs.Decisions = append(rs.Decisions, bocage.Decision{ID: bocage.DecisionID(1000 + 10*generation + uint64(i)), Verdict: bocage.VerdictAllow,
				Code: bocage.ReasonRule, Duties: &bocage.Duties{Rate: rate}, By: []bocage.Ref{{Kind: "Guardrail", Name: rate, Field: "spec.require.rate"}}})
		}
		for _, from := range []bocage.Group{21, 22, 23} {
			for i, to := range []bocage.Group{21, 22, 23} {
				id := rs.Decisions[len(rs.Decisions)-4+(int(from)+i)%4].ID
				tcp, udp := allowTCP(from, to, 80), allowUDP(from, to)
				tcp.Decision, udp.Decision = id, id
				rs.Rules = append(rs.Rules, tcp, udp, allowTCP(from, to, 81))
			}
		}
		slices.SortFunc(rs.Rules, bocage.CompareRules)
		must(t, p.Apply(rs))
	}
	renew(1)

	type pair struct {
		limit    uint64
		from, to bocage.Identity
	}
	meter, dues := &bocage.Meter{}, map[pair]time.Time{}
	at, offset := time.Unix(1000, 0), int64(0)
	reasons, again := map[string]int{}, 0
	for n := range 2500 {
		if n%500 == 499 {
			renew(rs.Generation + 1)
		}
		if n%700 == 699 {
			must(t, p.Close()) // and another process goes on
			p.reopen()
		}
		i := r.IntN(len(ws))
		from, to := ws[i], ws[(i+1+r.IntN(len(ws)-1))%len(ws)]
		f := frame{from: [6]byte(from.mac), to: gatewayMAC(from), source: from.v4, dst: to.v4, protocol: bocage.ProtocolTCP,
			sport: uint16(1024 + n), dport: 80 + uint16(r.IntN(5)/4), tcpFlags: syn, payload: 8}
		if r.IntN(2) == 0 {
			f.source, f.dst = from.v6, to.v6
		}
		if r.IntN(3) == 0 {
			f.protocol = bocage.ProtocolUDP
		}
		at = at.Add(time.Duration(r.Int64N(int64(40 * time.Millisecond))))
		flow := bocage.Flow{Source: f.source, Destination: f.dst, Protocol: f.protocol, DestinationPort: f.dport, At: at}
		_, reason := rs.Decide(flow)
		decision, _ := rs.Decision(reason.Decision)
		limit, limited := decision.Limit()
		key := pair{limit.Number, from.port.Identity, to.port.Identity}
		// The kernel's clock ticks: what is as close as that is not asked.
		for limited && (dues[key].Sub(at)-bocage.LimitAhead).Abs() < 25*time.Millisecond {
			at = at.Add(30 * time.Millisecond)
			flow.At = at
		}
		if limited {
			dues[key], _ = limit.Take(dues[key], at)
		}
		verdict, reason := meter.Open(rs, flow)

		before := p.quotasNow()
		for try := 0; ; try++ {
			now := coarse()
			moved := map[bpf.KernelQuotaKey]bpf.KernelQuota{}
			for key, quota := range before {
				quota.Due += uint64(now - at.UnixNano() - offset)
				moved[key] = quota
			}
			p.setQuotas(moved)
			returned := p.judgedHere(true, from.ifindex, f.bytes())
			if coarse() != now && try < 100 {
				f.sport += 7000 // not a packet of the same flow
				again++
				continue
			}
			if offset = now - at.UnixNano(); (returned == next) != verdict.Allowed() {
				t.Fatalf("flow %d, %s at %s: the programs returned %d, the model says %s, %s", n, flow, at, int32(returned), verdict, reason.Code)
			}
			break
		}
		reasons[fmt.Sprint(verdict, " ", reason.Code)]++
	}
	t.Logf("%v; %d once more, because the clock had moved", reasons, again)
	counters, err := p.Counters()
	must(t, err)
	told := reasons["drop rate-limited"]
	if refused := int(counters.Refused[bocage.ReasonRateLimited].Packets); refused < told || refused > told+again {
		t.Errorf("%d refusals counted, want %d", refused, told)
	}
	if told < 150 || reasons["allow rule"] < 500 {
		t.Errorf("too few of one kind")
	}
}

// Real connections and datagrams, many times as fast as they may be: what begins is
// what is declared, in both families; what is established, and others, are not hurt;
// generations come and go, and a process ends and another goes on.
func TestRootRateHoldsForTraffic(t *testing.T) {
	t.Parallel()
	const rate = 20
	p := newPlane(t)
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 21)
	p.attach(a, b, c)
	generation := uint64(0)
	renew := func() {
		generation++
		rs := ruleset(generation, []bocage.Rule{limitedTCP(21, 22, 80), limitedUDP(21, 22), allowTCP(21, 22, 81)}, a, b, c)
		owe(rs, fmt.Sprintf("%d/s", rate))
		rs.Decisions[len(rs.Decisions)-1].Log = generation%2 == 0 // something changes each time
		must(t, p.Apply(rs))
	}
	renew()
	for _, address := range []netip.Addr{b.v4, b.v6} {
		echo(t, b, address, 80)
		echo(t, b, address, 81)
		sink(t, b, address, 9000)
	}
	established := []net.Conn{mustDial(t, a, b.v4, 80), mustDial(t, a, b.v6, 80)}

	// The flood: from a, at over a hundred a second, of all kinds.
	begin := time.Now()
	const lasts = 4 * time.Second
	var flood sync.WaitGroup
	done := make(chan struct{})
	offered := make([][]time.Time, 4)
	for kind := range offered {
		address := []netip.Addr{b.v4, b.v6}[kind%2]
		flood.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-done:
					return
				case <-tick.C:
				}
				if kind < 2 {
					send(t, a, unix.SOCK_STREAM, address, 80)
				} else {
					send(t, a, unix.SOCK_DGRAM, address, 9000)
				}
				offered[kind] = append(offered[kind], time.Now())
			}
		})
	}
	changes, others := 0, 0
	for time.Since(begin) < lasts {
		<-time.After(100 * time.Millisecond)
		for _, conn := range established {
			must(t, ping(conn, long))
		}
		// Others go on at a rate of their own, and so does what is not limited.
		if changes%4 == 0 {
			must(t, ping(mustDial(t, c, b.v4, 80), long))
			others++
		}
		must(t, ping(mustDial(t, a, b.v6, 81), long))
		others++
		renew()
		changes++
		if changes == 20 {
			must(t, p.Close())
			p.open()
		}
	}
	close(done)
	flood.Wait()
	took := time.Since(begin)
	counters, err := p.Counters()
	must(t, err)
	refused := int(counters.Refused[bocage.ReasonRateLimited].Packets)
	all := slices.Concat(offered...)
	slices.SortFunc(all, time.Time.Compare)
	began := int(counters.FlowsOpened) - len(established) - others
	most := rate*took.Seconds() + rate*bocage.LimitAhead.Seconds() + 1
	// Where nobody had the processor for long enough to offer anything, nothing began.
	least, due := 0, time.Time{}
	for _, at := range all {
		var may bool
		if due, may = (bocage.Limit{Every: time.Second / rate}).Take(due, at); may {
			least++
		}
	}
	t.Logf("%d offered in %s, %d began, about %d and at most %.0f may; %d refused, %d generations", len(all), took, began, least, most, refused, changes)
	if float64(began) > most+1 || float64(began) < 0.9*float64(least) {
		t.Errorf("%d flows began in %s, at %d a second", began, took, rate)
	}
	if refused == 0 || began+refused > len(all) { // each is offered by one packet
		t.Errorf("%d began and %d were refused, of %d", began, refused, len(all))
	}
}

// A refused flow is told with its decision, and a moment later it may begin; what only
// observes tells and lets pass.
func TestRootRateIsTold(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	echo(t, b, b.v4, 80)
	rs := ruleset(1, []bocage.Rule{limitedTCP(21, 22, 80), limitedUDP(21, 22)}, a, b)
	owe(rs, "1/s")
	must(t, p.Apply(rs))
	first := mustDial(t, a, b.v4, 80)
	p.postpone(time.Hour) // at once is a matter of machines
	if _, err := dial(t, a, b.v4, 80, short); !isTimeout(err) {
		t.Fatalf("a second connection at once: %v, want a timeout", err)
	}
	e := p.await("a refusal", func(e bocage.FlowEvent) bool { return e.Reason == bocage.ReasonRateLimited })
	if e.Kind != bocage.EventRefused || e.Verdict != bocage.VerdictDrop || e.Decision != decideLimited || e.Source != 101 || e.Destination != 102 || e.DestinationPort != 80 {
		t.Errorf("event %+v", e)
	}
	// What is sent again when the turn has come begins.
	p.postpone(-time.Hour)
	must(t, ping(mustDial(t, a, b.v4, 80), long))
	must(t, ping(first, long))

	// It does not matter by what the flow is spread: ports are no other pair.
	rs = rs.Copy()
	rs.Generation, rs.Groups = 2, slices.Clone(rs.Groups)
	rs.Groups[0].Enforce, rs.Groups[1].Enforce = false, false
	must(t, p.Apply(rs))
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, dport: 9000, payload: 8}
	for n := range 5 {
		f.sport, f.dport = uint16(2000+n), uint16(9000+n)
		if got := p.judgedHere(true, a.ifindex, f.bytes()); got != next {
			t.Fatalf("observed, and refused: %d", int32(got))
		}
	}
	e = p.await("what would be refused", func(e bocage.FlowEvent) bool {
		return e.Reason == bocage.ReasonRateLimited && e.Protocol == bocage.ProtocolUDP
	})
	if e.Kind != bocage.EventRefused || e.Verdict != bocage.VerdictAllow || e.Would != bocage.VerdictDrop {
		t.Errorf("event %+v", e)
	}
}

// oneInASecond is a plane of two workloads, of which the one may begin one connection
// with the other in a second.
func oneInASecond(t *testing.T) (p *plane, a, b *workload, rs *bocage.Ruleset) {
	t.Helper()
	p = newPlane(t)
	a, b = p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	rs = ruleset(1, []bocage.Rule{limitedTCP(21, 22, 80)}, a, b)
	owe(rs, "1/s")
	must(t, p.Apply(rs))
	return p, a, b, rs
}

// mostInSeconds is how many may have begun since, at one a second, on a machine that
// took its time.
func mostInSeconds(begun time.Time) int { return 2 + int(time.Since(begun)/time.Second) }

// What cannot open a flow is not counted, nor what was there before the point was, nor
// what belongs to a flow that lives.
func TestRootRateCountsWhatBegins(t *testing.T) {
	t.Parallel()
	p, a, b, rs := oneInASecond(t)
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 4000, dport: 80, tcpFlags: ack}
	for n := range 20 { // picked up: they were there before
		f.sport = uint16(4000 + n)
		if got := p.judgedHere(true, a.ifindex, f.bytes()); got != next {
			t.Fatalf("a connection from before is refused: %d", int32(got))
		}
	}
	if n := len(p.quotasNow()); n != 0 {
		t.Errorf("%d pairs were counted for connections from before", n)
	}
	f.sport, f.tcpFlags = 5000, syn
	for range 20 { // one that begins, sent again and again
		if got := p.judgedHere(true, a.ifindex, f.bytes()); got != next {
			t.Fatalf("what was let begin is refused: %d", int32(got))
		}
	}
	rs = rs.Copy()
	rs.Generation = 2
	must(t, p.Apply(rs))
	if got := p.judgedHere(true, a.ifindex, f.bytes()); got != next {
		t.Fatalf("what was let begin is refused by another generation: %d", int32(got))
	}
	f.sport++
	p.postpone(time.Hour)
	if got := p.judgedHere(true, a.ifindex, f.bytes()); got != dropped {
		t.Fatalf("another that begins: %d", int32(got))
	}
	// Where there is no limit any more, what was counted does not count.
	rs = ruleset(3, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)
	must(t, p.Apply(rs))
	if got := p.judgedHere(true, a.ifindex, f.bytes()); got != next {
		t.Fatalf("not limited, and refused: %d", int32(got))
	}
	if n := p.differing(rs); n != 0 {
		t.Errorf("%d rows are left of the limit", n)
	}
}

// What a packet that belongs to nothing leaves in the table does not let a flow begin
// unseen on its ports.
func TestRootRateCountsBehindPickups(t *testing.T) {
	t.Parallel()
	p, a, b, _ := oneInASecond(t)
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, dport: 80}
	began, begun := 0, time.Now()
	for n := range 20 {
		f.sport, f.tcpFlags = uint16(4000+n), ack
		if got := p.judgedHere(true, a.ifindex, f.bytes()); got != next {
			t.Fatalf("a connection from before is refused: %d", int32(got))
		}
		f.tcpFlags = syn
		if p.judgedHere(true, a.ifindex, f.bytes()) == next {
			began++
		}
	}
	if began < 1 || began > mostInSeconds(begun) {
		t.Errorf("%d of 20 connections began at once, at one a second", began)
	}
}

// A connection on the ports of one that one side has forgotten is one more that begins.
func TestRootRateCountsConnectionsOnOnesPorts(t *testing.T) {
	t.Parallel()
	p, a, b, _ := oneInASecond(t)
	there := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 4000, dport: 80}
	back := frame{from: gatewayMAC(a), to: [6]byte(a.mac), source: b.v4, dst: a.v4, protocol: bocage.ProtocolTCP, sport: 80, dport: 4000}
	ask := func(flags byte) bool {
		there.tcpFlags = flags
		return p.judgedHere(true, a.ifindex, there.bytes()) == next
	}
	answer := func(flags byte) bool {
		back.tcpFlags = flags
		return p.judgedHere(false, a.ifindex, back.bytes()) == next
	}
	began, begun := 0, time.Now()
	for n := range 10 {
		opens := ask(syn)
		if opens && !ask(syn) {
			t.Fatal("an opener that is sent again is counted again")
		}
		if n == 0 && !(opens && answer(syn|ack) && answer(syn|ack)) { // sent again before it is established
			t.Fatal("the first connection is refused")
		}
		if opens && answer(syn|ack) {
			began++
			if !ask(ack) {
				t.Fatal("a connection is refused that was let begin")
			}
		}
		if !answer(fin | ack) {
			t.Fatal("what lives is refused")
		}
	}
	if began < 1 || began > mostInSeconds(begun) {
		t.Errorf("%d of 10 connections began at once, at one a second", began)
	}
}

// More limits than there is room for are an error that says what to do.
func TestRootLimitsFull(t *testing.T) {
	t.Parallel()
	p := newPlane(t, func(c *Config) { c.LimitEntries = 4 })
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	rs := ruleset(1, nil, a, b)
	for n := range 5 {
		rs.Decisions = append(rs.Decisions, bocage.Decision{ID: bocage.DecisionID(100 + n), Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule,
			Duties: &bocage.Duties{Rate: "1/s"}})
	}
	if err := p.Apply(rs); err == nil || err.Error() != "apply generation 1: 5 decisions that limit flows and room for 4: give the agent --table-entries limits=5 or more" {
		t.Errorf("%v", err)
	}
}

// send begins a flow from a port of its own, and does not wait for what becomes of it.
func send(t testing.TB, w *workload, kind int, address netip.Addr, port uint16) {
	err := host.In(w.namespace, func() error {
		family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(port), Addr: address.As16()})
		if address.Is4() {
			family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(port), Addr: address.As4()}
		}
		fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if kind == unix.SOCK_DGRAM {
			return unix.Sendto(fd, []byte("datagram"), 0, to)
		}
		if err := unix.Connect(fd, to); !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A rate counts what begins on a wire whatever its VLAN is: who sends may choose that.
func TestRootRateCountsVLANsOfWire(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	r := limitedUDP(21, 22)
	rs := ruleset(1, []bocage.Rule{r}, a, b)
	owe(rs, "1/s")
	must(t, p.Apply(rs))
	p.wire(a, b, true, a)
	p.run()
	f := frame{from: [6]byte(a.mac), to: [6]byte(b.mac), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 4000, dport: 80, payload: 50}
	const vlans = 10
	seen := b.listen(t)
	for vlan := range uint16(vlans) {
		f.sport++
		sendFrame(t, a, tagged(f.bytes(), vlan+1))
		if vlan > 0 {
			continue
		}
		if got := seen(4001, f.dport, true); got != 1 {
			t.Errorf("the first came by VLAN %d (-1: not at all)", got)
		}
		p.postpone(time.Hour)
	}
	if got := seen(f.sport, f.dport, false); got >= 0 {
		t.Errorf("the last came by VLAN %d", got)
	}
	if quotas := p.quotasNow(); len(quotas) != 1 {
		t.Errorf("counted apart: %v", quotas)
	}
}
