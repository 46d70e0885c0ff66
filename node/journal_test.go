package node

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// amendment leads from one ruleset to another.
func amendment(t testing.TB, from, to *bocage.Ruleset) *bocage.Amendment {
	t.Helper()
	a, err := bocage.Difference(from, to)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A shelf that gets amendments stands as one that gets the same rulesets whole, and so
// does one that is opened anew over what it left, at any moment.
func TestShelfAmends(t *testing.T) {
	s := newSigner(t)
	early := time.Now()
	deadline, late := early.Add(time.Hour), early.Add(2*time.Hour)
	logger := slog.New(slog.DiscardHandler)
	dirs := t.TempDir()
	rapid.Check(t, func(r *rapid.T) {
		var dir [2]string
		var shelves [2]*shelf
		for i := range dir {
			var err error
			if dir[i], err = os.MkdirTemp(dirs, ""); err != nil {
				r.Fatal(err)
			}
			shelves[i] = openShelf(dir[i], s.credentials(dir[i]), "h1", logger)
		}
		newest := uint64(0)
		for range rapid.IntRange(1, 12).Draw(r, "steps") {
			switch what := rapid.IntRange(0, 9).Draw(r, "what"); {
			case what < 7:
				newest++
				confirmBy := time.Time{}
				if rapid.Bool().Draw(r, "waits") {
					confirmBy = deadline
				}
				rs := generation(newest, confirmBy, bocage.Identity(30+newest))
				envelope := s.sign(bocage.SignedRuleset, rs)
				shelves[0].take(rs, envelope)
				if shelves[1].settle(); what > 1 && shelves[1].amendable() {
					held := shelves[1].rulesets[len(shelves[1].rulesets)-1].ruleset()
					a := amendment(t, held, rs)
					if err := shelves[1].amend(a, s.sign(bocage.SignedAmendment, a), time.Now()); err != nil {
						r.Fatal(err)
					}
				} else {
					shelves[1].take(rs, envelope)
				}
			case what == 7 && newest > 0:
				c := bocage.Confirmation{Generation: uint64(rapid.IntRange(1, int(newest)).Draw(r, "confirmed"))}
				for _, sh := range shelves {
					sh.confirm(c, s.sign(bocage.SignedConfirm, c))
				}
			case what == 8:
				if _, back := shelves[0].stands(late); back {
					for _, sh := range shelves {
						sh.leave()
					}
				}
			case newest > 0:
				for i := range shelves {
					shelves[i] = openShelf(dir[i], s.credentials(dir[i]), "h1", logger)
				}
			}
			for _, moment := range []time.Time{early, late} {
				want, back := shelves[0].standing(moment)
				for name, sh := range map[string]*shelf{"as it is": shelves[1], "opened anew": openShelf(dir[1], s.credentials(dir[1]), "h1", logger)} {
					got, gotBack := sh.standing(moment)
					if newest == 0 && got == nil {
						continue
					}
					if got.Generation != want.Generation || gotBack != back || !slices.Equal(refusedIn(got), refusedIn(want)) ||
						!slices.Equal(got.Peers, want.Peers) || !sh.deadline().Equal(shelves[0].deadline()) {
						r.Fatalf("%s: generation %d (back: %v) refuses %v, want %d (%v), %v", name, got.Generation, gotBack, refusedIn(got),
							want.Generation, back, refusedIn(want))
					}
				}
			}
		}
	})
}

// What is damaged of the amendments ends them; what came before stands.
func TestShelfCutsDamagedAmendments(t *testing.T) {
	s := newSigner(t)
	for name, c := range map[string]struct {
		damage func(journal []byte) []byte
		want   uint64
	}{
		"nothing":           {func(b []byte) []byte { return b }, 3},
		"cut short":         {func(b []byte) []byte { return b[:len(b)-1] }, 2},
		"a head alone":      {func(b []byte) []byte { return append(b, make([]byte, journalHead-1)...) }, 3},
		"a length too long": {func(b []byte) []byte { return append(b, bytes.Repeat([]byte{0xff}, 64)...) }, 3},
		"another signature": {func(b []byte) []byte { b[len(b)-1]++; return b }, 2},
		"no file":           {func([]byte) []byte { return nil }, 1},
		"the first twice": {func(b []byte) []byte {
			first := journalHead + int(binary.BigEndian.Uint32(b[8:]))
			return slices.Concat(b[:first], b[:first], b[first:])
		}, 2},
	} {
		dir := t.TempDir()
		have := s.credentials(dir)
		sh := openShelf(dir, have, "h1", slog.New(slog.DiscardHandler))
		all := []*bocage.Ruleset{generation(1, time.Time{}), generation(2, time.Time{}), generation(3, time.Time{})}
		sh.take(all[0], s.sign(bocage.SignedRuleset, all[0]))
		for i, rs := range all[1:] {
			a := amendment(t, all[i], rs)
			if err := sh.amend(a, s.sign(bocage.SignedAmendment, a), time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(dir, journalFile(1))
		journal, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, c.damage(journal), 0o600); err != nil {
			t.Fatal(err)
		}
		sh = openShelf(dir, have, "h1", slog.New(slog.DiscardHandler))
		if got := sh.newest(); got != c.want {
			t.Errorf("%s: generation %d, want %d", name, got, c.want)
		}
		// And it goes on from there.
		rs := generation(9, time.Time{})
		held, _ := sh.standing(time.Now())
		a := amendment(t, held, rs)
		if err := sh.amend(a, s.sign(bocage.SignedAmendment, a), time.Now()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := openShelf(dir, have, "h1", slog.New(slog.DiscardHandler)).newest(); got != 9 {
			t.Errorf("%s: generation %d after another amendment", name, got)
		}
	}
}

// A shelf that is opened over many amendments holds what it may need, not every ruleset
// that it passes on the way there.
func TestShelfReadsManyAmendments(t *testing.T) {
	const peers, amendments = 20_000, 150
	s := newSigner(t)
	dir := t.TempDir()
	have := s.credentials(dir)
	sh := openShelf(dir, have, "h1", slog.New(slog.DiscardHandler))
	last := generation(1, time.Time{}).Copy() // which has not been looked at yet
	for i := range peers {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32)
		last.Peers = append(last.Peers, bocage.Peer{Prefix: prefix, Identity: bocage.Identity(1000 + i), Group: last.Peers[0].Group})
	}
	last.Digest = last.ContentDigest()
	sh.take(last, s.sign(bocage.SignedRuleset, last))
	for n := range amendments {
		rs := last.Copy()
		rs.Generation++
		rs.Peers = slices.Clone(rs.Peers)
		rs.Peers[len(rs.Peers)-1].Identity = bocage.Identity(2000 + n)
		rs.Digest = rs.ContentDigest()
		a := amendment(t, last, rs)
		if err := sh.amend(a, s.sign(bocage.SignedAmendment, a), time.Now()); err != nil {
			t.Fatal(err)
		}
		last = rs
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	opened := openShelf(dir, have, "h1", slog.New(slog.DiscardHandler))
	if rs, _ := opened.standing(time.Now()); rs.Generation != last.Generation || rs.Digest != last.Digest {
		t.Errorf("generation %d stands, want %d", rs.Generation, last.Generation)
	}
	one := uint64(unsafe.Sizeof(bocage.Peer{})) * peers
	// What tests before this one have left behind comes and goes beside it.
	hosttest.Await(t, fmt.Sprintf("no more to be held than some rulesets of %d MB", one>>20), func() bool {
		return heap() <= before+(mostUnconfirmed+4)*one
	})
	runtime.KeepAlive(sh)
	runtime.KeepAlive(opened)
}

// amender answers with what differs from what the agent has, as controllers do, and
// counts. Generations are its rulesets, in order.
type amender struct {
	sign            *signer
	mu              sync.Mutex
	all             []*bocage.Ruleset
	wholes, amended int
	bases           []uint64
	spoil           func(*bocage.Amendment)
	confirmed       uint64
}

func (c *amender) answer(q rulesetQuestion) (a rulesetAnswer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.confirmed > q.Confirmed {
		a.Confirm = c.sign.sign(bocage.SignedConfirm, bocage.Confirmation{Generation: c.confirmed})
	}
	newest := c.all[len(c.all)-1]
	if newest.Generation <= q.Have {
		return a
	}
	c.bases = append(c.bases, q.Base)
	for _, rs := range c.all {
		if rs.Generation == q.Base {
			change := amendment(c.sign.t, rs, newest)
			if c.spoil != nil {
				c.spoil(change)
			}
			c.amended++
			a.Amendment = c.sign.sign(bocage.SignedAmendment, change)
			return a
		}
	}
	c.wholes++
	a.Ruleset = c.sign.sign(bocage.SignedRuleset, newest)
	return a
}

func (c *amender) next(rs *bocage.Ruleset) {
	c.mu.Lock()
	c.all = append(c.all, rs)
	c.mu.Unlock()
}

func (c *amender) counts() (wholes, amended int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wholes, c.amended
}

// What comes as an amendment comes into force as such, over restarts, confirmations
// and the way back; what is no use of comes whole.
func TestRootAmended(t *testing.T) {
	t.Parallel()
	s, sign := newSite(t)
	never := time.Time{}
	c := &amender{sign: sign, all: []*bocage.Ruleset{generation(1, never, 30)}}
	s.there.say(c.answer)
	s.start(true)
	in := func(n uint64, refused ...bocage.Identity) {
		t.Helper()
		s.until(fmt.Sprintf("generation %d", n), func(h bocage.HostStatus) bool {
			rs := s.process.ruleset.Load()
			return h.Generation == n && rs != nil && rs.Generation == n && slices.Equal(refusedIn(rs), refused)
		})
	}
	counted := func(wholes, amended int) {
		t.Helper()
		if w, a := c.counts(); w != wholes || a != amended {
			t.Errorf("%d rulesets came whole and %d as amendments, want %d and %d", w, a, wholes, amended)
		}
	}
	in(1, 30)
	c.next(generation(2, never, 30, 31))
	signal(s.notice)
	in(2, 30, 31)
	counted(1, 1)

	// A notice is lost, and so is an answer: what comes next has both.
	c.next(generation(3, never, 31))
	c.next(generation(4, never, 31, 32))
	signal(s.notice)
	in(4, 31, 32)
	counted(1, 2)

	// Killed after it took an amendment, without a controller when it starts.
	s.stop()
	s.start(false)
	in(4, 31, 32)
	s.stop()
	s.start(true)
	in(4, 31, 32)
	c.next(generation(5, never, 33))
	signal(s.notice)
	in(5, 33)
	counted(1, 3)

	// One that does not lead there, whatever is wrong with it, is replaced by the whole.
	c.mu.Lock()
	c.spoil = func(a *bocage.Amendment) {
		a.Refused.Added = append(a.Refused.Added, bocage.Refusal{Identity: 99, Decision: quarantine})
	}
	c.mu.Unlock()
	c.next(generation(6, never, 34))
	signal(s.notice)
	in(6, 34)
	counted(2, 4)
	c.mu.Lock()
	c.spoil = nil
	c.mu.Unlock()

	// One that is confirmed stays.
	c.next(generation(7, time.Now().Add(time.Hour), 35))
	signal(s.notice)
	in(7, 35)
	c.mu.Lock()
	c.confirmed = 7
	c.mu.Unlock()
	signal(s.notice)
	confirmed := filepath.Join(s.cfg.agentDir("identity"), confirmFile)
	s.until("the confirmation", func(bocage.HostStatus) bool { _, err := os.Stat(confirmed); return err == nil })
	c.next(generation(8, never, 36))
	signal(s.notice)
	in(8, 36)
	counted(2, 6)

	// One that nobody confirms is gone back from, without the agent; what comes then
	// comes whole.
	deadline := time.Now().Add(soon)
	c.next(generation(9, deadline, 37))
	signal(s.notice)
	in(9, 37)
	counted(2, 7)
	s.stop()
	<-time.After(time.Until(deadline))
	s.start(true)
	s.until("the way back", func(h bocage.HostStatus) bool { return h.Generation == 8 && h.RevertedFrom == 9 })
	c.next(generation(10, never, 38))
	signal(s.notice)
	in(10, 38)
	counted(3, 7)
}

// wired is two workloads on either side of a site's dataplane, in namespaces.
type wired struct {
	from, to bocage.Port
	send     *net.UDPConn
	receive  *net.UDPConn
}

// wire makes two workloads, 10.77.0.1 and 10.77.0.2, and a way between them.
func (s *site) wire() *wired {
	s.t.Helper()
	in := hosttest.Namespace(s.t)
	w := &wired{}
	must := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	via := netip.MustParseAddr("169.254.1.1")
	var namespaces [2]string
	for i, port := range []*bocage.Port{&w.from, &w.to} {
		n := byte(i + 1)
		namespaces[i] = hosttest.Namespace(s.t)
		mac, gateway := net.HardwareAddr{2, 0, 0, 0, 0, n}, net.HardwareAddr{2, 0, 0, 0, 1, n}
		address := netip.AddrFrom4([4]byte{10, 77, 0, n})
		*port = bocage.Port{Interface: fmt.Sprintf("w%d", n), Identity: bocage.Identity(100 + i), Group: bocage.Group(20 + i),
			Workload: fmt.Sprintf("test/w%d", n), MAC: mac.String(), Addresses: []netip.Addr{address}}
		must(host.CreateVeth(host.Veth{Name: port.Interface, Namespace: in, Peer: "eth0", PeerNamespace: namespaces[i], MAC: gateway, PeerMAC: mac}))
		must(host.AddAddress(namespaces[i], "eth0", netip.PrefixFrom(address, 32)))
		must(host.AddRoute(in, host.Route{Destination: netip.PrefixFrom(address, 32), Link: port.Interface}))
		must(host.AddNeighbor(in, port.Interface, address, mac))
		must(host.AddNeighbor(namespaces[i], "eth0", via, gateway))
		must(host.AddRoute(namespaces[i], host.Route{Destination: everything, Gateway: via, Link: "eth0", OnLink: true}))
		link, err := host.LinkNamed(in, port.Interface)
		must(err)
		must(host.In(in, func() error {
			return s.process.dataplane.Attach(dataplane.Attachment{Ifindex: link.Index, Port: *port})
		}))
	}
	must(host.Sysctl(in, "net.ipv4.ip_forward", "1"))
	at := net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.to.Addresses[0], 9))
	must(host.In(namespaces[1], func() (err error) { w.receive, err = net.ListenUDP("udp4", at); return err }))
	must(host.In(namespaces[0], func() (err error) { w.send, err = net.DialUDP("udp4", nil, at); return err }))
	s.t.Cleanup(func() { w.receive.Close(); w.send.Close() })
	return w
}

// wide is a ruleset of n rules and n addresses, of which one rule lets the wire's
// workloads talk.
func wide(n int, w *wired) *bocage.Ruleset {
	rs := &bocage.Ruleset{Generation: 1, Host: "h1", Default: refuse, Ports: []bocage.Port{w.from, w.to}, Decisions: []bocage.Decision{
		{ID: refuse, Verdict: bocage.VerdictDrop, Code: bocage.ReasonDefaultDeny},
		{ID: 3, Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule}}}
	for i, port := range rs.Ports {
		rs.Peers = append(rs.Peers, bocage.Peer{Prefix: netip.PrefixFrom(port.Addresses[0], 32), Identity: port.Identity, Group: port.Group, Host: "h1", Workload: port.Workload})
		rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: bocage.Group(20 + i), Enforce: true})
	}
	rs.Rules = append(rs.Rules, bocage.Rule{From: 20, To: 21, Protocol: bocage.ProtocolUDP, Ports: bocage.PortRange{First: 9, Last: 9}, Decision: 3})
	groups := max(n/10, 1)
	for i := range n {
		address := binary.BigEndian.AppendUint32(nil, 11<<24|uint32(i))
		rs.Peers = append(rs.Peers, bocage.Peer{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte(address)), 32),
			Identity: bocage.Identity(100_000 + i), Group: bocage.Group(1000 + i%groups), Host: "h2"})
		rs.Rules = append(rs.Rules, bocage.Rule{From: bocage.Group(1000 + i%groups), To: 20, Protocol: bocage.ProtocolTCP,
			Ports: bocage.PortRange{First: uint16(1000 + i/groups), Last: uint16(1000 + i/groups)}, Decision: 3})
	}
	for g := range groups {
		rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: bocage.Group(1000 + g), Enforce: true})
	}
	slices.SortFunc(rs.Rules, bocage.CompareRules)
	rs.Digest = rs.ContentDigest()
	return rs
}

// toggler revokes one rule and grants it again, by amendments made beforehand.
type toggler struct {
	sign    *signer
	whole   []byte // signed
	rules   [2]bocage.Edits[bocage.Rule]
	digests [2]string
	wanted  atomic.Uint64
	arrived atomic.Int64 // when the last answer that brought something was handed over
	damaged atomic.Int64
}

func newToggler(sign *signer, rs *bocage.Ruleset) *toggler {
	payload := &bytes.Buffer{}
	zip, err := gzip.NewWriterLevel(payload, gzip.BestSpeed)
	if err == nil {
		err = json.NewEncoder(zip).Encode(rs)
	}
	if err == nil {
		err = zip.Close()
	}
	if err != nil {
		sign.t.Fatal(err)
	}
	c := &toggler{sign: sign}
	if c.whole, err = sign.svid.Sign(bocage.SignedRuleset, payload.Bytes()); err != nil {
		sign.t.Fatal(err)
	}
	without := rs.Copy()
	i := slices.IndexFunc(rs.Rules, func(r bocage.Rule) bool { return r.From == 20 })
	without.Rules = slices.Delete(slices.Clone(rs.Rules), i, i+1)
	c.digests = [2]string{without.ContentDigest(), rs.Digest} // by the generation's last bit
	rule := []bocage.Rule{rs.Rules[i]}
	c.rules = [2]bocage.Edits[bocage.Rule]{{Removed: rule}, {Added: rule}}
	c.wanted.Store(1)
	return c
}

func (c *toggler) answer(q rulesetQuestion) (a rulesetAnswer) {
	wanted := c.wanted.Load()
	switch {
	case q.Have >= wanted:
		return a
	case q.Have == 0:
		a.Ruleset = c.whole
	case q.Base != q.Have:
		c.damaged.Add(1)
		return a
	default:
		change := &bocage.Amendment{From: q.Have, FromDigest: c.digests[q.Have%2], Generation: wanted, Digest: c.digests[wanted%2], Host: "h1"}
		if q.Have%2 != wanted%2 {
			change.Rules = c.rules[wanted%2]
		}
		a.Amendment = c.sign.sign(bocage.SignedAmendment, change)
	}
	c.arrived.Store(time.Now().UnixNano())
	return a
}

// turn brings the next generation into force by the agent's own route, and says when
// its message arrived, and when it was told to be in force.
func (c *toggler) turn(s *site) (arrived, receipt time.Time) {
	s.t.Helper()
	before := s.process.since.Load()
	n := c.wanted.Add(1)
	signal(s.notice)
	timeout := time.After(time.Minute)
	for {
		if since := s.process.since.Load(); since != before {
			break
		}
		select {
		case <-s.process.applied:
		case <-timeout:
			s.t.Fatalf("generation %d does not come into force", n)
		}
	}
	return time.Unix(0, c.arrived.Load()), *s.process.since.Load()
}

// No packet that is sent after the receipt of a revocation is accepted, whenever it
// comes, and every one is after that of a grant.
func TestRootNothingPassesAfterTheReceipt(t *testing.T) {
	s, sign := newSite(t)
	s.start(false)
	w := s.wire()
	s.stop()
	rs := wide(1000, w)
	c := newToggler(sign, rs)
	s.there.say(c.answer)
	s.start(true)
	s.until("generation 1", func(h bocage.HostStatus) bool { return h.Generation == 1 })

	type span struct{ from, to time.Time }
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	var sent []span // by number: the packet was sent at some moment in it
	all.Go(func() {
		for ctx.Err() == nil {
			begun := time.Now()
			// What is refused is not told to the sender.
			_, _ = w.send.Write(binary.BigEndian.AppendUint64(nil, uint64(len(sent))))
			sent = append(sent, span{begun, time.Now()})
		}
	})
	var accepted []int
	var heard atomic.Int64
	all.Go(func() {
		b := make([]byte, 64)
		for {
			n, err := w.receive.Read(b)
			if err != nil {
				return
			}
			if n == 8 {
				accepted = append(accepted, int(binary.BigEndian.Uint64(b)))
				heard.Add(1)
			}
		}
	})
	var closed []span
	for begun := time.Now(); len(closed) < 60 || heard.Load() < 2000 && time.Since(begun) < time.Minute; {
		<-time.After(3 * time.Millisecond)
		_, receipt := c.turn(s)
		<-time.After(3 * time.Millisecond)
		until := time.Now() // the grant is on its way from here on
		c.turn(s)
		closed = append(closed, span{receipt, until})
	}
	<-time.After(20 * time.Millisecond)
	stop()
	if err := w.receive.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	within := func(packet int) bool {
		return slices.ContainsFunc(closed, func(c span) bool { return sent[packet].from.After(c.from) && sent[packet].to.Before(c.to) })
	}
	refused := 0
	for packet := range sent {
		if within(packet) {
			refused++
		}
	}
	wrong := len(slices.DeleteFunc(slices.Clone(accepted), func(packet int) bool { return !within(packet) }))
	if wrong > 0 || len(accepted) < 1000 || refused < 100 || c.damaged.Load() > 0 {
		t.Errorf("%d packets were accepted of %d that were sent between a receipt and the next grant, %d others were; %d amendments were of no use",
			wrong, refused, len(accepted)-wrong, c.damaged.Load())
	}
}

// BenchmarkRootAmend measures from the arrival of the message that revokes one rule, or
// grants it, to its being in force, by the agent's whole route: signature, digest, the
// file, the guard of sessions, the kernel.
//
//	go test -run '^$' -bench RootAmend -benchtime 1x ./node/
func BenchmarkRootAmend(b *testing.B) {
	for _, n := range []int{1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, sign := newSite(b)
			s.room = n + 1000
			s.start(false)
			w := s.wire()
			s.stop()
			c := newToggler(sign, wide(n, w))
			s.there.say(c.answer)
			s.start(true)
			timeout := time.After(5 * time.Minute)
			for s.process.since.Load() == nil {
				select {
				case <-s.process.applied:
				case <-timeout:
					b.Fatal("the whole ruleset does not come into force")
				}
			}
			var latencies []time.Duration
			var before, after unix.Rusage
			if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
				b.Fatal(err)
			}
			const turns = 1000
			for range turns {
				arrived, receipt := c.turn(s)
				latencies = append(latencies, receipt.Sub(arrived))
			}
			if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
				b.Fatal(err)
			}
			slices.Sort(latencies)
			used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(latencies[turns/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(latencies[turns*99/100].Microseconds()), "p99-µs")
			b.ReportMetric(float64(used)/turns/1000, "cpu-µs/change")
			if c.damaged.Load() > 0 {
				b.Errorf("%d amendments were of no use", c.damaged.Load())
			}
		})
	}
}
