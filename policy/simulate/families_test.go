package simulate

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// dual is three Pods with addresses of both families, of which b lets in everybody over
// IPv6 only, and one with an address of IPv4 only.
func dual() compile.Input {
	in := compile.Input{Now: policytest.Now}
	for i, name := range []string{"a", "b", "c", "old"} {
		w := &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: "x", Name: name, Labels: map[string]string{"app": name}},
			Spec: bocage.WorkloadSpec{Orchestrator: bocage.OrchestratorKubernetes, Addresses: []netip.Addr{
				netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", i+1)), netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1))}},
			Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)}}
		if name == "old" {
			w.Spec.Addresses = w.Spec.Addresses[:1]
		}
		in.Workloads = append(in.Workloads, w)
	}
	in.NetworkPolicies = []*bocage.NetworkPolicy{{
		TypeMeta:   bocage.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: bocage.ObjectMeta{Namespace: "x", Name: "six"},
		Spec: bocage.NetworkPolicySpec{PodSelector: bocage.Selector{MatchLabels: map[string]string{"app": "b"}}, PolicyTypes: []string{"Ingress"},
			Ingress: []bocage.NetworkPolicyIngressRule{{From: []bocage.NetworkPolicyPeer{{IPBlock: &bocage.IPBlock{CIDR: "fd00::/64"}}}}}},
	}}
	return in
}

// TestFamiliesDiffer: a flow by names is open over one family only, and nothing that is
// asked about it hides that.
func TestFamiliesDiffer(t *testing.T) {
	s, _ := Compile(dual())
	for _, test := range []struct {
		from, to, protocol string
		verdict, families  string
		fault              string
	}{
		{"x/a", "x/b", "TCP", "deny", "map[IPv4:deny IPv6:allow]", ""},
		{"x/a", "x/c", "TCP", "allow", "map[]", ""},
		{"x/old", "x/b", "TCP", "deny", "map[]", ""},
		{"x/a", "10.0.0.2", "TCP", "deny", "map[]", ""},
		{"x/a", "fd00::2", "TCP", "allow", "map[]", ""},
		{"x/a", "x/b", "ICMP", "deny", "map[]", ""},
		{"x/a", "x/b", "ICMPv6", "allow", "map[]", ""},
		{"fd00::1", "fd00::2", "ICMPv6", "allow", "map[]", ""},
		{"10.0.0.1", "10.0.0.2", "ICMPv6", "", "map[]", "protocol: ICMPv6 is IPv6's, and 10.0.0.1 and 10.0.0.2 have addresses of IPv4 in common only: ask for ICMP"},
		{"x/a", "fd00::2", "ICMP", "", "map[]", "protocol: ICMP is IPv4's, and x/a and fd00::2 have addresses of IPv6 in common only: ask for ICMPv6"},
		{"x/old", "fd00::2", "ICMPv6", "", "map[]", "x/old and fd00::2 have no address of the same family"},
	} {
		p := bocage.SimulateProbe{From: test.from, To: test.to, Protocol: test.protocol}
		if test.protocol == "TCP" {
			p.Port = 80
		}
		a := s.Answer(p)
		if a.Verdict != test.verdict || fmt.Sprint(a.Families) != test.families || a.Error != test.fault {
			t.Errorf("%s -> %s %s: %s %v %q", test.from, test.to, test.protocol, a.Verdict, a.Families, a.Error)
		}
	}
	m, err := s.Matrix(nil)
	if err != nil {
		t.Fatal(err)
	}
	cells := map[string]string{}
	for _, cell := range m.Cells {
		var texts []string
		for _, set := range cell.Ports {
			texts = append(texts, set.Protocol.String()+set.Family)
		}
		cells[cell.From+" "+cell.To] = strings.Join(texts, " ")
	}
	want := map[string]string{"x/a x/a": "any", "x/a x/b": "anyIPv6", "x/a x/c": "any", "x/a x/old": "any", "x/b x/a": "any", "x/b x/b": "any", "x/b x/c": "any", "x/b x/old": "any",
		"x/c x/a": "any", "x/c x/b": "anyIPv6", "x/c x/c": "any", "x/c x/old": "any", "x/old x/a": "any", "x/old x/c": "any", "x/old x/old": "any"}
	if !maps.Equal(cells, want) {
		t.Errorf("the matrix is %v", cells)
	}
}

// TestCasesHoldInBothFamilies: what a test says of names it says of all their addresses.
func TestCasesHoldInBothFamilies(t *testing.T) {
	s, _ := Compile(dual())
	all := func(app string) *bocage.Side {
		return &bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{"app": app}}}
	}
	for i, test := range []struct {
		c    bocage.PolicyTestCase
		want string
	}{
		{bocage.PolicyTestCase{From: "x/a", To: "x/b", Port: 80, Expect: bocage.PolicyExpectation{Reach: "refuse"}}, "x/a -> x/b TCP/80 over IPv6"},
		{bocage.PolicyTestCase{From: "x/a", To: "x/b", Port: 80, Expect: bocage.PolicyExpectation{Reach: "allow"}}, "x/a -> x/b TCP/80 over IPv4"},
		{bocage.PolicyTestCase{FromAll: all("a"), To: "x/b", Port: 80, Expect: bocage.PolicyExpectation{Reach: "refuse"}}, "x/a -> x/b TCP/80"},
		{bocage.PolicyTestCase{From: "x/a", To: "x/c", Port: 80, Expect: bocage.PolicyExpectation{Reach: "allow"}}, ""},
		{bocage.PolicyTestCase{From: "x/old", To: "x/b", Port: 80, Expect: bocage.PolicyExpectation{Reach: "refuse"}}, ""},
		{bocage.PolicyTestCase{From: "10.0.0.1", To: "x/b", Port: 80, Expect: bocage.PolicyExpectation{Reach: "refuse"}}, ""},
		{bocage.PolicyTestCase{From: "x/a", To: "x/b", Protocol: "ICMPv6", Expect: bocage.PolicyExpectation{Reach: "allow"}}, ""},
		{bocage.PolicyTestCase{From: "x/a", To: "x/b", Protocol: "ICMP", Expect: bocage.PolicyExpectation{Reach: "refuse"}}, ""},
		{bocage.PolicyTestCase{FromAll: all("a"), ToAll: all("b"), Protocol: "ICMPv6", Expect: bocage.PolicyExpectation{Reach: "allow"}}, ""},
		{bocage.PolicyTestCase{FromAll: all("old"), ToAll: all("b"), Protocol: "ICMPv6", Expect: bocage.PolicyExpectation{Reach: "allow"}},
			"no flow: the two sides have no address of the same family that carries ICMPv6"},
	} {
		r := s.testCase(test.c)
		told := r.Flow
		if r.Flow == "" {
			told = r.Got
		}
		if r.Passed != (test.want == "") || !r.Passed && told != test.want {
			t.Errorf("case %d: %+v", i, r)
		}
	}
}

// TestMomentsThatAreNone: a moment that stands for none is not taken for now.
func TestMomentsThatAreNone(t *testing.T) {
	for text, want := range map[string]string{
		`{"from": "a/b", "to": "c/d", "port": 1, "at": "0001-01-01T00:00:00Z"}`: "at: that moment stands for none: leave it out to ask about now",
		`{"from": "a/b", "to": "c/d", "port": 1, "at": "0001-01-01T00:00:01Z"}`: "",
		`{"from": "a/b", "to": "c/d", "port": 1, "at": null}`:                   "",
		`{"from": "a/b", "to": "c/d", "port": 1}`:                               "",
	} {
		got := ""
		err := Probes("p", strings.NewReader(text), func(_ bocage.SimulateProbe, _ string, broken error) error {
			if broken != nil {
				got = broken.Error()
			}
			return nil
		})
		if err != nil || !strings.HasSuffix(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
}
