package bocage

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseDomainName(t *testing.T) {
	for text, want := range map[string]DomainName{
		"api.example.com": "api.example.com", "API.Example.COM.": "api.example.com", "*.example.com": "*.example.com",
		"xn--bcher-kva.example": "xn--bcher-kva.example", "_sip._tcp.example.com": "_sip._tcp.example.com", "a.b": "a.b",
		strings.Repeat("a", 63) + ".example": DomainName(strings.Repeat("a", 63) + ".example"),
	} {
		if got, err := ParseDomainName(text); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"", ".", "com", "*", "*.com", "*.", "a..b", ".example.com", "example.com..", "a.*.com", "ex*.example.com", "**.example.com",
		"-a.example", "a-.example", "bücher.example", "a b.example", "10.0.0.1", "a.1", strings.Repeat("a", 64) + ".example", strings.Repeat("abcdefg.", 32) + "com"} {
		if got, err := ParseDomainName(text); err == nil {
			t.Errorf("%q is taken as %q", text, got)
		}
	}
}

func TestDomainNameMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, name DomainName
		want          bool
	}{
		{"example.com", "example.com", true}, {"example.com", "a.example.com", false},
		{"*.example.com", "a.example.com", true}, {"*.example.com", "a.b.example.com", true},
		{"*.example.com", "example.com", false}, {"*.example.com", "badexample.com", false}, {"*.example.com", "a.example.com.evil.org", false},
	} {
		if got := c.pattern.Matches(c.name); got != c.want {
			t.Errorf("%s of %s: %v", c.pattern, c.name, got)
		}
	}
}

func TestExternalText(t *testing.T) {
	for text, want := range map[string]string{
		`{"external":"203.0.113.0/24","port":443}`: `{"external":"203.0.113.0/24","port":443}`,
		`{"external":"API.example.com.","port":1}`: `{"external":"api.example.com","port":1}`,
		`{"service":"db"}`:                         `{"service":"db"}`,
	} {
		var c Consume
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if got, err := json.Marshal(c); err != nil || string(got) != want {
			t.Errorf("%s becomes %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"10.0.0.1", "2001:db8::1", "10.0.0.0/33", "example", "http://example.com", "example.com:443", "*.com"} {
		var e External
		if err := e.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken as %v", text, e)
		}
	}
	for _, e := range []External{{Name: "Example.com"}, {Name: "x"}, {Name: "a.b", Prefix: netip.MustParsePrefix("10.0.0.0/8")}, {Prefix: netip.MustParsePrefix("10.0.0.1/8")}} {
		if len(e.validate()) == 0 {
			t.Errorf("%+v has no fault", e)
		}
	}
}

func FuzzExternal(f *testing.F) {
	for _, text := range []string{"*.example.com", "10.0.0.0/8", "A.B.", "::/0"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var e, again External
		if e.UnmarshalText([]byte(text)) != nil || !e.IsValid() {
			return
		}
		if err := again.UnmarshalText([]byte(e.String())); err != nil || again != e {
			t.Fatalf("%q becomes %v, and that %v, %v", text, e, again, err)
		}
	})
}

// named is a small ruleset: group 20 consumes *.example.com at tcp/443; towards
// 198.51.100.0/24 a guardrail never allows it, towards 192.0.2.0/24 Kubernetes
// forbids and towards 203.0.113.0/24 merely withholds; 10.0.0.2 is a neighbour.
func named() *Ruleset {
	all := PortRange{Last: 65535}
	return &Ruleset{
		Peers: []Peer{
			{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Identity: IdentityFirst, Group: 20, Host: "h", Workload: "shop/web"},
			{Prefix: netip.MustParsePrefix("10.0.0.2/32"), Identity: IdentityFirst + 1, Group: 21, Host: "h", Workload: "shop/db"},
			{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Identity: IdentityWorld, Group: 30},
			{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Identity: IdentityWorld, Group: 31},
			{Prefix: netip.MustParsePrefix("203.0.113.0/24"), Identity: IdentityWorld, Group: 32},
		},
		Groups: []GroupInfo{{Group: 20, Enforce: true}, {Group: 21, Enforce: true}, {Group: 30}, {Group: 31}, {Group: 32}, {Group: 40}},
		Names:  []Name{{Name: "*.example.com", Group: 40}},
		Rules: []Rule{
			{From: 20, To: 30, Ports: all, Decision: 3}, {From: 20, To: 31, Ports: all, Decision: 2}, {From: 20, To: 32, Ports: all, Decision: 4},
			{From: 20, To: 40, Protocol: ProtocolTCP, Ports: PortRange{443, 443}, Decision: 5},
		},
		Decisions: []Decision{
			{ID: 1, Verdict: VerdictDrop, Code: ReasonDefaultDeny}, {ID: 2, Verdict: VerdictDrop, Code: ReasonGuardrail},
			{ID: 3, Verdict: VerdictDrop, Code: ReasonKubernetes, Final: true}, {ID: 4, Verdict: VerdictDrop, Code: ReasonKubernetes},
			{ID: 5, Verdict: VerdictAllow, Code: ReasonRule},
		},
		Default: 1,
	}
}

func TestDecideNamed(t *testing.T) {
	rs := named()
	for _, c := range []struct {
		what, to string
		port     uint16
		heard    DomainName
		want     DecisionID
	}{
		{"what nobody names", "100.64.0.1", 443, "api.example.com", 5},
		{"IPv6", "2001:db8::7", 443, "api.example.com", 5},
		{"another port", "100.64.0.1", 80, "api.example.com", 1},
		{"another name", "100.64.0.1", 443, "example.org", 1},
		{"no name", "100.64.0.1", 443, "", 1},
		{"what a guardrail never allows", "198.51.100.9", 443, "api.example.com", 2},
		{"what Kubernetes forbids", "192.0.2.9", 443, "api.example.com", 3},
		{"what Kubernetes withholds", "203.0.113.9", 443, "api.example.com", 5},
		{"a neighbour", "10.0.0.2", 443, "api.example.com", 1},
		{"the host itself", "127.0.0.1", 443, "api.example.com", 1},
		{"its link", "169.254.169.254", 443, "api.example.com", 1},
		{"its link, mapped", "::ffff:169.254.169.254", 443, "api.example.com", 1},
	} {
		f := Flow{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddr(c.to), Protocol: ProtocolTCP, DestinationPort: c.port}
		verdict, reason := rs.DecideNamed(f, c.heard)
		if reason.Decision != c.want || verdict.Allowed() != (c.want == 5) {
			t.Errorf("%s: %s by decision %d, want %d", c.what, verdict, reason.Decision, c.want)
		}
	}
	ranked := []struct {
		what    string
		refused Decision
		ranks   Ranks // of the name
		opens   bool
	}{
		{"forbidden later in the tier", Decision{Code: ReasonKubernetes, Final: true, Ranks: Ranks{Admin: 8}}, Ranks{Admin: 7}, true},
		{"forbidden by the rule itself", Decision{Code: ReasonKubernetes, Final: true, Ranks: Ranks{Admin: 7}}, Ranks{Admin: 7}, false},
		{"forbidden before", Decision{Code: ReasonKubernetes, Final: true, Ranks: Ranks{Admin: 6}}, Ranks{Admin: 7}, false},
		{"forbidden, and by others too", Decision{Code: ReasonKubernetes, Final: true}, Ranks{Admin: 7}, false},
		{"forbidden in Admin, accepted in Baseline", Decision{Code: ReasonKubernetes, Final: true, Ranks: Ranks{Admin: 8}}, Ranks{Baseline: 7}, false},
		{"forbidden, and consumed", Decision{Code: ReasonKubernetes, Final: true, Ranks: Ranks{Admin: 8}}, Ranks{}, false},
		{"isolated", Decision{Code: ReasonKubernetes}, Ranks{Admin: 7}, true},
		{"isolated, accepted in Baseline", Decision{Code: ReasonKubernetes}, Ranks{Baseline: 7}, false},
		{"isolated, and consumed", Decision{Code: ReasonKubernetes}, Ranks{}, true},
		{"isolated behind a pass", Decision{Code: ReasonKubernetes, Ranks: Ranks{Admin: 7}}, Ranks{Admin: 7}, false},
		{"denied in Baseline", Decision{Code: ReasonKubernetes, Ranks: Ranks{Admin: EveryRank, Baseline: 7}}, Ranks{Baseline: 6}, true},
		{"denied in Baseline before", Decision{Code: ReasonKubernetes, Ranks: Ranks{Admin: EveryRank, Baseline: 7}}, Ranks{Baseline: 8}, false},
		{"silent", Decision{Code: ReasonDefaultDeny}, Ranks{Baseline: 7}, true},
		{"silent behind a pass", Decision{Code: ReasonDefaultDeny, Ranks: Ranks{Admin: 5, Baseline: EveryRank}}, Ranks{Admin: 6}, false},
		{"a guardrail's", Decision{Code: ReasonGuardrail, Ranks: Ranks{Admin: 8}}, Ranks{Admin: 7}, false},
		{"a response's", Decision{Code: ReasonThreat}, Ranks{Admin: 7}, false},
	}
	for _, c := range ranked {
		rs = named()
		rs.Decisions[0] = c.refused
		rs.Decisions[0].ID, rs.Decisions[0].Verdict = 1, VerdictDrop
		if rs.Decisions[4].Ranks = c.ranks; c.ranks != (Ranks{}) {
			rs.Decisions[4].Code = ReasonKubernetes
		}
		f := Flow{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddr("100.64.0.1"), Protocol: ProtocolTCP, DestinationPort: 443}
		if verdict, reason := rs.DecideNamed(f, "api.example.com"); verdict.Allowed() != c.opens {
			t.Errorf("%s: %s by decision %d", c.what, verdict, reason.Decision)
		}
	}
	rs = named()
	rs.Refused = []Refusal{{Identity: IdentityFirst, Decision: 2}}
	f := Flow{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddr("100.64.0.1"), Protocol: ProtocolTCP, DestinationPort: 443}
	if verdict, reason := rs.DecideNamed(f, "api.example.com"); verdict.Allowed() || reason.Code != ReasonQuarantine {
		t.Errorf("who is quarantined gets %s (%s)", verdict, reason.Code)
	}
}

// TestNeverNamed: the prefixes are those of all addresses that no name may mean.
func TestNeverNamed(t *testing.T) {
	listed := func(a netip.Addr) bool {
		return slices.ContainsFunc(NeverNamed(), func(p netip.Prefix) bool { return p.Contains(a) })
	}
	check := func(a netip.Addr) {
		t.Helper()
		if a.IsValid() && NamesMayMean(a) == listed(a) {
			t.Errorf("%s: named %t, listed as never named %t", a, NamesMayMean(a), listed(a))
		}
	}
	for _, p := range NeverNamed() {
		last := p.Addr().AsSlice()
		for bit := p.Bits(); bit < len(last)*8; bit++ {
			last[bit/8] |= 1 << (7 - bit%8)
		}
		end, _ := netip.AddrFromSlice(last)
		for _, a := range []netip.Addr{p.Addr(), p.Addr().Prev(), p.Addr().Next(), end, end.Next()} {
			check(a)
		}
	}
	for b := range 1 << 16 {
		check(netip.AddrFrom4([4]byte{byte(b >> 8), byte(b), 3, 7}))
		check(netip.AddrFrom16([16]byte{byte(b >> 8), byte(b), 15: 9}))
	}
}
