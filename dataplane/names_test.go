package dataplane

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/net/dns/dnsmessage"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// The ids of names are SipHash-2-4, by the vectors of its authors.
func TestNameHash(t *testing.T) {
	var raw [16]byte
	for i := range raw {
		raw[i] = byte(i)
	}
	key := nameKey{name: [2]uint64{binary.LittleEndian.Uint64(raw[:]), binary.LittleEndian.Uint64(raw[8:])}}
	want := map[int]uint64{0: 0x726fdb47dd0e0e31, 1: 0x74f839c593dc67fd, 7: 0xab0200f58b01d137, 8: 0x93f5f5799a932462, 15: 0xa129ca6149be45e5}
	for n, hash := range want {
		if got := key.hash(raw[:n]); got != hash {
			t.Errorf("hash of %d bytes is %x, want %x", n, got, hash)
		}
	}
}

// site is a host with a workload that may ask the DNS, a workload that answers, and
// a world outside that has addresses of names.
type site struct {
	*plane
	client, server *workload
	world          *workload
	names          []bocage.Name
	generation     uint64
}

// Groups of the names at a site.
const (
	groupExact = bocage.GroupFirst + 900
	groupBelow = bocage.GroupFirst + 901
	groupOther = bocage.GroupFirst + 902
)

func newSite(t testing.TB, options ...func(*Config)) *site {
	s := &site{plane: newPlane(t, append([]func(*Config){func(c *Config) { c.NameLeast = time.Minute }}, options...)...)}
	s.client, s.server = s.workload(1, 101, 21), s.workload(2, 102, 22)
	s.world = s.workload(3, 0, 0) // its side of the link has no enforcement point
	for i := range 8 {
		for _, a := range []netip.Addr{outside4(i), outside6(i)} {
			must(t, host.AddAddress(s.world.namespace, "eth0", netip.PrefixFrom(a, a.BitLen())))
			must(t, host.AddRoute(s.namespace, host.Route{Destination: netip.PrefixFrom(a, a.BitLen()), Link: s.world.link}))
			must(t, host.AddNeighbor(s.namespace, s.world.link, a, s.world.mac))
			echo(t, s.world, a, 443)
		}
	}
	s.attach(s.client, s.server)
	s.names = []bocage.Name{{Name: "*.example.com", Group: groupBelow}, {Name: "api.example.org", Group: groupExact}, {Name: "other.example.net", Group: groupOther}}
	s.apply()
	return s
}

func outside4(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + i)}) }
func outside6(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(16 + i)})
}

// ruleset allows the client to ask the server, and two of the names.
func (s *site) ruleset() *bocage.Ruleset {
	s.generation++
	rules := []bocage.Rule{allowTCP(21, 22, 53), allowTCP(21, groupExact, 443), allowTCP(21, groupBelow, 443)}
	udp := rules[0]
	udp.Protocol = bocage.ProtocolUDP
	rules = append(rules, udp)
	slices.SortFunc(rules, bocage.CompareRules)
	rs := ruleset(s.generation, rules, s.client, s.server)
	rs.Names = s.names
	return rs
}

func (s *site) apply() *bocage.Ruleset {
	s.t.Helper()
	rs := s.ruleset()
	must(s.t, s.Apply(rs))
	return rs
}

// serveDNS answers at the server with what respond makes of a question.
func (s *site) serveDNS(respond func(query []byte) [][]byte) {
	s.t.Helper()
	var c net.PacketConn
	var l net.Listener
	must(s.t, host.In(s.server.namespace, func() (err error) {
		at := netip.AddrPortFrom(s.server.v4, 53).String()
		if c, err = net.ListenPacket("udp", at); err == nil {
			l, err = net.Listen("tcp", at)
		}
		return err
	}))
	s.t.Cleanup(func() { c.Close(); l.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			for _, answer := range respond(slices.Clone(b[:n])) {
				if answer != nil {
					c.WriteTo(answer, from)
				}
			}
		}
	}()
}

// zone answers from a map of names to resources.
func zone(t testing.TB, records func(name string, kind dnsmessage.Type) []dnsmessage.Resource) func([]byte) [][]byte {
	return func(query []byte) [][]byte {
		var m dnsmessage.Message
		if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
			return nil
		}
		q := m.Questions[0]
		answer := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions,
			Answers: records(strings.ToLower(q.Name.String()), q.Type)}
		b, err := answer.Pack()
		if err != nil {
			t.Error(err)
		}
		return [][]byte{b}
	}
}

func addressRecord(name string, ttl uint32, a netip.Addr) dnsmessage.Resource {
	h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl}
	if a.Is4() {
		return dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}}
	}
	return dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}}
}

func alias(name string, ttl uint32, to string) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl},
		Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to)}}
}

// ask asks from the client and returns the answer.
func (s *site) ask(name string, kind dnsmessage.Type) dnsmessage.Message {
	s.t.Helper()
	var got dnsmessage.Message
	must(s.t, host.In(s.client.namespace, func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(s.server.v4, 53).String())
		if err != nil {
			return err
		}
		defer c.Close()
		query := dnsmessage.Message{Header: dnsmessage.Header{ID: uint16(time.Now().UnixNano()), RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
		b, err := query.Pack()
		if err != nil {
			return err
		}
		if _, err := c.Write(b); err != nil {
			return err
		}
		answer := make([]byte, 65536)
		c.SetReadDeadline(time.Now().Add(long))
		n, err := c.Read(answer)
		if err != nil {
			return err
		}
		return got.Unpack(answer[:n])
	}))
	return got
}

// reaches says whether the client gets through to an address outside in time.
func (s *site) reaches(a netip.Addr, wait time.Duration) bool {
	s.t.Helper()
	c, err := dial(s.t, s.client, a, 443, wait)
	if err != nil {
		if !isTimeout(err) {
			s.t.Fatal(err)
		}
		return false
	}
	must(s.t, ping(c, long))
	c.Close()
	return true
}

func (s *site) expect(a netip.Addr, reaches bool, when string) {
	s.t.Helper()
	wait := short
	if reaches {
		wait = long
	}
	if got := s.reaches(a, wait); got != reaches {
		s.t.Errorf("%s: %s is reached: %v, want %v", when, a, got, reaches)
	}
}

// What the DNS says of a name that may be consumed is open from then on, until it ends.
func TestRootNames(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serveDNS(zone(t, func(name string, kind dnsmessage.Type) []dnsmessage.Resource {
		switch {
		case name == "api.example.org." && kind == dnsmessage.TypeA:
			return []dnsmessage.Resource{addressRecord(name, 3600, outside4(0)), addressRecord("foreign.example.org.", 3600, outside4(7))}
		case name == "api.example.org." && kind == dnsmessage.TypeAAAA:
			return []dnsmessage.Resource{addressRecord(name, 3600, outside6(0))}
		case name == "www.example.com.":
			return []dnsmessage.Resource{alias(name, 3600, "edge.cdn.test."), addressRecord("x7.cdn.test.", 3600, outside4(1)), alias("edge.cdn.test.", 3600, "x7.cdn.test.")}
		case name == "example.com." || name == "sub.api.example.org." || name == "other.example.net.":
			return []dnsmessage.Resource{addressRecord(name, 3600, outside4(2))}
		case name == "brief.example.com.":
			return []dnsmessage.Resource{alias(name, 1, "edge.cdn.test."), addressRecord("edge.cdn.test.", 3600, outside4(3))}
		case name == "inside.example.com.":
			return []dnsmessage.Resource{addressRecord(name, 3600, s.server.v4), addressRecord(name, 3600, netip.MustParseAddr("127.0.0.1"))}
		}
		return nil
	}))
	s.expect(outside4(0), false, "before anybody asked")
	s.ask("API.example.ORG.", dnsmessage.TypeA)
	s.expect(outside4(0), true, "after the answer")
	s.expect(outside4(7), false, "an address of another owner in the answer")
	s.expect(outside4(1), false, "another address")
	s.expect(outside6(0), false, "before the answer for IPv6")
	s.ask("api.example.org.", dnsmessage.TypeAAAA)
	s.expect(outside6(0), true, "after the answer for IPv6")

	s.ask("www.example.com.", dnsmessage.TypeA)
	s.expect(outside4(1), true, "at the end of aliases, which come in any order")

	for _, name := range []string{"example.com.", "sub.api.example.org.", "other.example.net."} {
		s.ask(name, dnsmessage.TypeA)
	}
	s.expect(outside4(2), false, "an address of names that nobody may consume")

	s.ask("inside.example.com.", dnsmessage.TypeA)
	echo(t, s.server, s.server.v4, 443)
	s.expect(s.server.v4, false, "a workload's address, whatever the DNS says")

	// It ends with the aliases' TTL, which is less than the least here, and what is
	// established goes on.
	s.ask("brief.example.com.", dnsmessage.TypeA)
	lives := mustDial(t, s.client, outside4(3), 443)
	must(t, ping(lives, long))
	s.expect(outside4(3), true, "before the TTL is over")
	s.later(time.Minute)
	s.expect(outside4(3), false, "after the TTL")
	must(t, ping(lives, long))
	rs := s.apply()
	must(t, ping(lives, long))
	s.expect(outside4(3), false, "after the TTL, in another generation")
	s.expect(outside4(0), true, "in another generation")

	learned, err := s.Learned(rs)
	must(t, err)
	var lines []string
	for _, l := range learned {
		if left := time.Until(l.Until); left < 50*time.Minute || left > time.Hour {
			t.Errorf("%s counts for %s", l.Address, left)
		}
		lines = append(lines, fmt.Sprintf("%d %s %s", l.Identity, l.Address, l.Name))
	}
	want := []string{"101 10.77.0.2 *.example.com", "101 203.0.113.11 *.example.com", "101 203.0.113.10 api.example.org", "101 203.0.113.12 other.example.net", "101 2001:db8::10 api.example.org"}
	slices.Sort(want)
	slices.Sort(lines)
	if !slices.Equal(lines, want) {
		t.Errorf("learned\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}

	// Who loses the name loses what it opened.
	s.names = s.names[:1]
	cut := mustDial(t, s.client, outside4(0), 443)
	s.apply()
	if err := ping(cut, short); !isTimeout(err) {
		t.Errorf("a connection by a name that is no longer consumed: %v, want a timeout", err)
	}
	s.expect(outside4(1), true, "another name")
	c, err := s.Counters()
	must(t, err)
	if c.NamesAsked == 0 || c.NamesAnswered == 0 || c.NamesUnasked != 0 || c.NamesUnread != 0 || c.NamesUnlearned != 0 {
		t.Errorf("counters %+v", c)
	}
}

// What was not asked, or comes from elsewhere, or says something else, teaches nothing.
func TestRootNamesForged(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	good := func(query []byte) dnsmessage.Message {
		var m dnsmessage.Message
		must(t, m.Unpack(query))
		name := m.Questions[0].Name.String()
		m.Response, m.Additionals = true, nil
		m.Answers = []dnsmessage.Resource{addressRecord(name, 3600, outside4(0))}
		return m
	}
	pack := func(m dnsmessage.Message) []byte {
		b, err := m.Pack()
		must(t, err)
		return b
	}
	forgeries := []struct {
		name  string
		forge func(query []byte) []byte
		// unasked says that the answer fits no question, and that the good one after it counts.
		unasked bool
	}{
		{"another id", func(q []byte) []byte { m := good(q); m.ID += 16; return pack(m) }, true},
		{"another question", func(q []byte) []byte {
			m := good(q)
			m.Questions[0].Name = dnsmessage.MustNewName("api.example.org.")
			m.Answers = []dnsmessage.Resource{addressRecord("api.example.org.", 3600, outside4(0))}
			return pack(m)
		}, true},
		{"another type", func(q []byte) []byte { m := good(q); m.Questions[0].Type = dnsmessage.TypeAAAA; return pack(m) }, true},
		{"letters in another case", func(q []byte) []byte {
			b := pack(good(q))
			b[13] ^= 0x20
			return b
		}, true},
		{"an error", func(q []byte) []byte { m := good(q); m.RCode = dnsmessage.RCodeServerFailure; return pack(m) }, false},
		{"a question", func(q []byte) []byte { m := good(q); m.Response = false; return pack(m) }, false},
		{"cut short by the server", func(q []byte) []byte { m := good(q); m.Truncated = true; return pack(m) }, false},
		{"another owner", func(q []byte) []byte {
			m := good(q)
			m.Answers = []dnsmessage.Resource{addressRecord("evil.example.com.", 3600, outside4(0))}
			return pack(m)
		}, false},
		{"aliases of each other", func(q []byte) []byte {
			m := good(q)
			name := m.Questions[0].Name.String()
			m.Answers = []dnsmessage.Resource{alias(name, 60, "x.test."), alias("x.test.", 60, name), addressRecord(name, 60, outside4(0))}
			return pack(m)
		}, false},
		{"another class", func(q []byte) []byte { m := good(q); m.Answers[0].Header.Class = dnsmessage.ClassCHAOS; return pack(m) }, false},
		{"a record cut short", func(q []byte) []byte { b := pack(good(q)); return b[:len(b)-1] }, false},
		{"two questions", func(q []byte) []byte {
			m := good(q)
			m.Questions = append(m.Questions, m.Questions[0])
			return pack(m)
		}, false},
		{"a section that is not of answers", func(q []byte) []byte {
			m := good(q)
			m.Additionals, m.Answers = m.Answers, nil
			return pack(m)
		}, false},
	}
	var mu sync.Mutex
	var forge func([]byte) []byte
	s.serveDNS(func(query []byte) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		return [][]byte{forge(query)}
	})
	for i, f := range forgeries {
		mu.Lock()
		forge = f.forge
		mu.Unlock()
		before, err := s.Counters()
		must(t, err)
		s.exchange(fmt.Sprintf("n%d.example.com.", i))
		s.expect(outside4(0), false, f.name)
		after, err := s.Counters()
		must(t, err)
		if got := after.NamesUnasked - before.NamesUnasked; (got == 1) != f.unasked {
			t.Errorf("%s: %d answers without a question", f.name, got)
		}
	}

	// Answers that come from elsewhere, or to somewhere else.
	mu.Lock()
	forge = func([]byte) []byte { return nil }
	mu.Unlock()
	const port = 40001
	query := s.query("www.example.com.", 7)
	must(t, host.In(s.client.namespace, func() error {
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.client.v4, port)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.server.v4, 53)))
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() })
		_, err = c.Write(query)
		return err
	}))
	answer := pack(good(query))
	other := slices.Clone(answer)
	other[1] ^= 1
	for _, f := range []struct {
		name   string
		answer []byte
		from   netip.AddrPort
		to     uint16
	}{
		{"another server", answer, netip.AddrPortFrom(netip.MustParseAddr("10.77.0.99"), 53), port},
		{"another port of the server", answer, netip.AddrPortFrom(s.server.v4, 54), port},
		{"to another port", answer, netip.AddrPortFrom(s.server.v4, 53), port + 1},
		{"the right flow, another id", other, netip.AddrPortFrom(s.server.v4, 53), port},
	} {
		s.inject(s.server, f.answer, f.from, f.to)
		s.expect(outside4(0), false, f.name)
	}
	s.inject(s.server, answer, netip.AddrPortFrom(s.server.v4, 53), port)
	s.expect(outside4(0), true, "the good answer")

	// An answer counts once: what it answered was asked once.
	good2 := good(query)
	good2.Answers[0] = addressRecord("www.example.com.", 60, outside4(1))
	s.inject(s.server, pack(good2), netip.AddrPortFrom(s.server.v4, 53), port)
	s.expect(outside4(1), false, "a second answer")
}

// query makes a question.
func (s *site) query(name string, id uint16) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, err := m.Pack()
	must(s.t, err)
	return b
}

// exchange asks and waits until something came, whatever it is.
func (s *site) exchange(name string) {
	s.t.Helper()
	must(s.t, host.In(s.client.namespace, func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(s.server.v4, 53).String())
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write(s.query(name, uint16(time.Now().UnixNano()))); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(long))
		_, err = c.Read(make([]byte, 4096))
		return err
	}))
}

// inject sends a datagram from a workload as it is, to a port of the client.
func (s *site) inject(from *workload, payload []byte, source netip.AddrPort, port uint16) {
	s.t.Helper()
	f := frame{source: source.Addr(), dst: s.client.v4, protocol: bocage.ProtocolUDP, sport: source.Port(), dport: port,
		from: [6]byte(from.mac), to: [6]byte{2, 0, 0, 0, 1, 2}}
	b := f.bytes()
	b = b[:len(b)-f.payload]
	ip := b[14:]
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(payload)))
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], checksum(0, ip[:20]))
	binary.BigEndian.PutUint16(ip[24:], uint16(8+len(payload)))
	binary.BigEndian.PutUint16(ip[26:], 0)
	from.raw(s.t).send(append(b, payload...))
}

// What one workload asks for costs no other one what it knows; beyond its own room,
// what ends first goes first, and is counted.
func TestRootNamesCrowded(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	other := s.workload(4, 104, 21)
	s.attach(other)
	rs := s.ruleset()
	rs.Peers = append(rs.Peers, other.peers("h1")...)
	must(t, s.Apply(rs))
	var mu sync.Mutex
	n := 0
	s.serveDNS(zone(t, func(name string, _ dnsmessage.Type) []dnsmessage.Resource {
		mu.Lock()
		defer mu.Unlock()
		if name == "api.example.org." {
			return []dnsmessage.Resource{addressRecord(name, 3600, outside4(0))}
		}
		var all []dnsmessage.Resource
		for range 20 {
			n++
			all = append(all, addressRecord(name, 600, netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)})))
		}
		return all
	}))
	s.ask("api.example.org.", dnsmessage.TypeA)
	crowd := &site{plane: s.plane, client: other, server: s.server}
	const answers = 200
	for i := range answers {
		crowd.ask(fmt.Sprintf("n%d.example.com.", i), dnsmessage.TypeA)
	}
	learned, err := s.Learned(rs)
	must(t, err)
	of := map[bocage.Identity]int{}
	for _, l := range learned {
		of[l.Identity]++
	}
	const most = 64 * 16
	if of[101] != 1 || of[104] > most || of[104] < most*9/10 {
		t.Errorf("learned %v, want 1 and nearly %d", of, most)
	}
	s.expect(outside4(0), true, "while another learned more than it has room for")
	c, err := s.Counters()
	must(t, err)
	if want := uint64(answers*20 - of[104]); c.NamesUnlearned != want {
		t.Errorf("%d addresses counted that were pushed out, want %d", c.NamesUnlearned, want)
	}

	// Who goes takes along what was learned.
	must(t, s.Detach(other.ifindex))
	must(t, s.sweep(sweepFlows))
	if learned, err = s.Learned(rs); err != nil || len(learned) != 1 {
		t.Errorf("%d rows after a workload has gone (%v), want 1", len(learned), err)
	}
}

// What was learned holds without any process, and with the next one.
func TestRootNamesOutliveTheAgent(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serveDNS(zone(t, func(name string, _ dnsmessage.Type) []dnsmessage.Resource {
		i := 0
		if name == "www.example.com." {
			i = 1
		}
		return []dnsmessage.Resource{addressRecord(name, 3600, outside4(i))}
	}))
	must(t, s.Close())
	rs := s.ruleset()
	kill := s.startChild(order{Attachments: []Attachment{{Ifindex: s.client.ifindex, Port: s.client.port}, {Ifindex: s.server.ifindex, Port: s.server.port}}, Ruleset: rs})
	s.ask("api.example.org.", dnsmessage.TypeA)
	lives := mustDial(t, s.client, outside4(0), 443)
	kill()
	s.expect(outside4(0), true, "with the agent killed")
	s.ask("www.example.com.", dnsmessage.TypeA)
	s.expect(outside4(1), true, "learned while no agent lived")
	s.open()
	s.run()
	must(t, s.Apply(rs))
	s.apply()
	must(t, s.sweep(sweepFlows))
	must(t, ping(lives, long))
	s.expect(outside4(0), true, "with the next agent")
	s.expect(outside4(1), true, "with the next agent")
}

// A candidate in shadow is judged by names too, and a question is told of them.
func TestRootNamesTraced(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serveDNS(zone(t, func(name string, _ dnsmessage.Type) []dnsmessage.Resource {
		return []dnsmessage.Resource{addressRecord(name, 3600, outside4(0))}
	}))
	s.ask("api.example.org.", dnsmessage.TypeA)
	for _, to := range []struct {
		address netip.Addr
		want    bocage.Verdict
	}{{outside4(0), bocage.VerdictAllow}, {outside4(1), bocage.VerdictDrop}} {
		b, err := Frame(bocage.TracePacket{Protocol: bocage.ProtocolTCP, DestinationPort: 443}, Ends{Source: s.client.v4, Destination: to.address,
			SourceMAC: s.client.mac, DestinationMAC: net.HardwareAddr{2, 0, 0, 0, 1, 1}})
		must(t, err)
		names, err := s.NamesOf(&bocage.Ruleset{Names: s.names}, 101, to.address)
		if must(t, err); (len(names) == 1) != to.want.Allowed() {
			t.Errorf("%s is known as %v", to.address, names)
		}
		s.in(func() error {
			passage, err := s.Trace(Question{Ifindex: s.client.ifindex, From: true, Frame: b})
			if err != nil {
				return err
			}
			if passage.Verdict != to.want || passage.Named != to.want.Allowed() {
				t.Errorf("traced to %s: %s, by a name: %v, want %s", to.address, passage.Verdict, passage.Named, to.want)
			}
			return nil
		})
	}
}

// Real programs: a server that answers, over UDP and TCP, and clients that ask.
func TestRootNamesTools(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"dnsmasq", "dig", "getent"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: scripts/setup test installs it", err)
		}
	}
	s := newSite(t)
	many := make([]string, 60)
	for i := range many {
		many[i] = fmt.Sprintf("--host-record=many.example.com,198.18.7.%d", i+1)
	}
	arguments := append([]string{"--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user=root", "--pid-file=",
		"--bind-interfaces", "--listen-address=" + s.server.v4.String() + "," + s.server.v6.String(), "--local-ttl=600", "--edns-packet-max=512",
		"--host-record=api.example.org," + outside4(0).String() + "," + outside6(0).String(),
		"--host-record=edge.cdn.test," + outside4(1).String() + "," + outside6(1).String(),
		"--cname=www.example.com,middle.cdn.test", "--cname=middle.cdn.test,edge.cdn.test"}, many...)
	server := exec.Command("dnsmasq", arguments...)
	var said strings.Builder
	server.Stderr = &said
	must(t, host.Start(s.server.namespace, server))
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })
	run := func(name string, arguments ...string) string {
		t.Helper()
		var out []byte
		must(t, host.In(s.client.namespace, func() (err error) {
			out, err = exec.Command(name, arguments...).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%s %v: %w\n%s%s", name, arguments, err, out, said.String())
			}
			return err
		}))
		return string(out)
	}
	dig := func(arguments ...string) string {
		return run("dig", append([]string{"+tries=20", "+time=1", "+short"}, arguments...)...)
	}
	v4, v6 := "@"+s.server.v4.String(), "@"+s.server.v6.String()
	s.expect(outside4(0), false, "before")
	if out := dig(v4, "api.example.org", "A"); !strings.Contains(out, outside4(0).String()) {
		t.Fatalf("dig: %s", out)
	}
	s.expect(outside4(0), true, "after dig")
	s.expect(outside6(0), false, "after dig for IPv4")
	dig(v6, "api.example.org", "AAAA")
	s.expect(outside6(0), true, "after dig by IPv6")
	dig("+tcp", v4, "www.example.com", "A")
	s.expect(outside4(1), true, "after dig by TCP, at the end of aliases")

	// Too much for a datagram: the client asks again by TCP.
	if out := dig("+bufsize=512", v4, "many.example.com", "A"); strings.Count(out, "198.18.7.") != len(many) {
		t.Fatalf("dig: %s", out)
	}
	rs := s.apply()
	learned, err := s.Learned(rs)
	must(t, err)
	of := 0
	for _, l := range learned {
		if l.Address.Is4() && l.Address.As4()[0] == 198 {
			of++
		}
	}
	if of != len(many) {
		t.Errorf("%d addresses learned of %d", of, len(many))
	}

	// The C library's own resolver asks for both families at once.
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	must(t, os.WriteFile(resolv, []byte("nameserver "+s.server.v4.String()+"\n"), 0o644))
	s.expect(outside6(1), false, "before getent")
	run("unshare", "--mount", "sh", "-c", `mount --bind "$1" /etc/resolv.conf && getent -s hosts:dns ahosts www.example.com`, "sh", resolv)
	s.expect(outside6(1), true, "after getent")
}

// What was learned holds when state is made anew, as for another size of a table.
func TestRootNamesMoveToAnotherLayout(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serveDNS(zone(t, func(name string, _ dnsmessage.Type) []dnsmessage.Resource {
		return []dnsmessage.Resource{addressRecord(name, 3600, outside4(0))}
	}))
	s.ask("api.example.org.", dnsmessage.TypeA)
	lives := mustDial(t, s.client, outside4(0), 443)
	must(t, ping(lives, long))
	must(t, s.Close())
	s.cfg.FlowEntries *= 2
	s.open()
	s.attach(s.client, s.server)
	must(t, ping(lives, long))
	s.apply()
	must(t, ping(lives, long))
	s.expect(outside4(0), true, "with another layout")
	if left, err := s.pins.foreignDirs(); err != nil || len(left) != 0 {
		t.Errorf("%v are left of the layout before (%v)", left, err)
	}
}

// What the programs of the layout before learn while it is left, port after port, is
// known as well, and an answer counts that comes after its question was seen there.
func TestRootNamesLearnedInAMove(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	held := make(chan struct{})
	var asked atomic.Bool
	alike := outside4(1) // an address whose rows lie beside those of the first
	s.serveDNS(zone(t, func(name string, _ dnsmessage.Type) []dnsmessage.Resource {
		switch name {
		case "late.example.com.":
			asked.Store(true)
			<-held
			return []dnsmessage.Resource{addressRecord(name, 3600, outside4(2))}
		case "www.example.com.":
			return []dnsmessage.Resource{addressRecord(name, 3600, alike)}
		}
		return []dnsmessage.Resource{addressRecord(name, 3600, outside4(0))}
	}))
	s.ask("api.example.org.", dnsmessage.TypeA)
	for i := 0; s.nameKey.part(addressOf(alike)) != s.nameKey.part(addressOf(outside4(0))); i++ {
		alike = netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
	}
	must(t, s.Close())
	s.cfg.FlowEntries *= 2
	s.open()
	must(t, s.sweep(sweepFlows)) // which forgets nothing of whom it does not know yet
	s.attach(s.server)
	rs := s.apply()
	s.ask("www.example.com.", dnsmessage.TypeA)
	var c net.Conn
	must(t, host.In(s.client.namespace, func() (err error) {
		if c, err = net.Dial("udp", netip.AddrPortFrom(s.server.v4, 53).String()); err == nil {
			_, err = c.Write(s.query("late.example.com.", 7))
		}
		return err
	}))
	defer c.Close()
	hosttest.Await(t, "the question to pass", func() bool {
		return asked.Load()
	})
	s.attach(s.client)
	if left, err := s.pins.foreignDirs(); err != nil || len(left) != 0 {
		t.Errorf("%v are left of the layout before (%v)", left, err)
	}
	close(held)
	c.SetReadDeadline(time.Now().Add(long))
	_, err := c.Read(make([]byte, 4096))
	must(t, err)
	for _, a := range []netip.Addr{outside4(0), alike, outside4(2)} {
		if learned, err := s.NamesOf(rs, 101, a); err != nil || len(learned) != 1 {
			t.Errorf("%s is known as %v (%v)", a, learned, err)
		}
	}
	must(t, s.sweep(sweepFlows))
	s.expect(outside4(0), true, "after the move")
}

// Keys and what was learned under them come from one place, that which is in force.
func TestRootNamesOfSeveralLayouts(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.serveDNS(zone(t, func(name string, _ dnsmessage.Type) []dnsmessage.Resource {
		return []dnsmessage.Resource{addressRecord(name, 3600, outside4(0))}
	}))
	s.ask("api.example.org.", dnsmessage.TypeA)
	must(t, s.Close())
	// State of another time, under other keys, whose folder is the first.
	other := newPlane(t)
	must(t, other.Close())
	if other.nameKey == s.nameKey {
		t.Fatal("the same keys were drawn twice")
	}
	must(t, os.MkdirAll(filepath.Join(s.cfg.PinDir, "0", "map"), 0o700))
	for _, name := range []string{"seeds", "learned", "inquiries"} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(other.pins.mapsDir(), name), nil)
		must(t, err)
		must(t, pinMap(m, filepath.Join(s.cfg.PinDir, "0", "map", name)))
		m.Close()
	}
	s.cfg.FlowEntries *= 2
	s.open()
	s.attach(s.client, s.server)
	rs := s.apply()
	if learned, err := s.Learned(rs); err != nil || len(learned) != 1 {
		t.Errorf("known is %v (%v)", learned, err)
	}
	s.expect(outside4(0), true, "with another layout")
}
