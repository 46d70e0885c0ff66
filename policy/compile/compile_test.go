package compile_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

func workload(i int, name string) *bocage.Workload {
	namespace, short, _ := strings.Cut(name, "/")
	return &bocage.Workload{
		ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: short, Labels: map[string]string{"app": short}},
		Spec:       bocage.WorkloadSpec{Host: "h1", Interface: fmt.Sprintf("v%d", i), Addresses: []netip.Addr{address(i)}},
		Status:     bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)},
	}
}

func address(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }

func named(name string) bocage.Selector {
	return bocage.Selector{MatchLabels: map[string]string{"app": name}}
}

func app(name string, provides []bocage.Provide, consumes ...bocage.Consume) *bocage.Application {
	namespace, short, _ := strings.Cut(name, "/")
	return &bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: short},
		Spec: bocage.ApplicationSpec{Workload: named(short), Provides: provides, Consumes: consumes}}
}

// shop has web (0), api (1) and db (2); web may talk to api.
func shop() compile.Input {
	return compile.Input{
		Now: policytest.Now, Generation: 1,
		Workloads: []*bocage.Workload{workload(0, "shop/web"), workload(1, "shop/api"), workload(2, "shop/db")},
		Applications: []*bocage.Application{
			app("shop/web", nil, bocage.Consume{Service: "api"}),
			app("shop/api", []bocage.Provide{{Name: "http", Port: 8080, To: named("web")}}),
		},
		Scopes: []*bocage.Scope{{ObjectMeta: bocage.ObjectMeta{Name: "all"}, Spec: bocage.ScopeSpec{Mode: bocage.ModeEnforce}}},
	}
}

// ask decides a TCP flow between two addresses.
func ask(rs *bocage.Ruleset, source, destination netip.Addr, port uint16) (bocage.Verdict, bocage.Decision) {
	verdict, reason := rs.Decide(bocage.Flow{Source: source, Destination: destination, DestinationPort: port, Protocol: bocage.ProtocolTCP, At: policytest.Now})
	d, _ := rs.Decision(reason.Decision)
	return verdict, d
}

// TestFindings lists what authors are told. Where a finding says that something
// takes no effect, the rest still does.
func TestFindings(t *testing.T) {
	guardrail := func(spec bocage.GuardrailSpec) func(*compile.Input) {
		return func(in *compile.Input) {
			in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: spec})
		}
	}
	threat := func(spec bocage.ThreatConditionSpec) func(*compile.Input) {
		return func(in *compile.Input) {
			if spec.Expires.IsZero() {
				spec.Expires = policytest.Now.Add(time.Hour)
			}
			in.ThreatConditions = append(in.ThreatConditions, &bocage.ThreatCondition{ObjectMeta: bocage.ObjectMeta{Name: "t"}, Spec: spec})
		}
	}
	for _, test := range []struct {
		name     string
		change   func(*compile.Input)
		object   string // as a Ref prints it
		reason   string
		rejected bool
		message  string // a part
	}{
		{"an unknown application", func(in *compile.Input) {
			in.Applications[0].Spec.Consumes = append(in.Applications[0].Spec.Consumes, bocage.Consume{Service: "other/thing"})
		}, "Application shop/web spec.consumes[1].service", compile.UnknownApplication, true, "there is no Application other/thing"},
		{"an unknown interface", func(in *compile.Input) { in.Applications[0].Spec.Consumes[0].Interface = "grpc" },
			"Application shop/web spec.consumes[0].interface", compile.UnknownInterface, true, `provides no "grpc": it provides http`},
		{"a service that provides nothing", func(in *compile.Input) { in.Applications[1].Spec.Provides = nil },
			"Application shop/web spec.consumes[0]", compile.UnknownInterface, true, "provides nothing"},
		{"the provider's half is missing", func(in *compile.Input) { in.Applications[1].Spec.Provides[0].To = named("db") },
			"Application shop/web spec.consumes[0]", compile.PeerMissing, false, "values: [db, web]"},
		{"the provider hears of it too", func(in *compile.Input) { in.Applications[1].Spec.Provides[0].To = named("db") },
			"Application shop/api spec.provides[0]", compile.PeerMissing, false, `Application shop/web consumes "http" but is not let in`},
		{"the consumer's half is missing", func(in *compile.Input) { in.Applications[0].Spec.Consumes = nil },
			"Application shop/api spec.provides[0]", compile.PeerMissing, false, "add to spec.consumes {service: api, interface: http}"},
		{"another namespace is not let in", func(in *compile.Input) {
			in.Workloads = append(in.Workloads, workload(9, "ops/prom"))
			in.Applications = append(in.Applications, app("ops/prom", nil, bocage.Consume{Service: "shop/api", Interface: "http"}))
		}, "Application ops/prom spec.consumes[0]", compile.PeerMissing, false, "toNamespaces: [shop, ops]"},
		{"an application of nobody", func(in *compile.Input) { in.Applications = append(in.Applications, app("shop/new", nil)) },
			"Application shop/new spec.workload", compile.NoWorkloads, false, "selects no workload"},
		{"an unknown profile", guardrail(bocage.GuardrailSpec{Require: &bocage.Duties{Inspect: "none"}}),
			"Guardrail g spec.require.inspect", compile.UnknownProfile, true, "refused until there is"},
		{"an unknown data class", guardrail(bocage.GuardrailSpec{Never: []bocage.CellMatch{{To: bocage.Side{Data: []string{"pci"}}}}}),
			"Guardrail g spec.never[0]", compile.NothingMatches, false, `data class "pci"`},
		{"a match that excludes its entry", guardrail(bocage.GuardrailSpec{
			Match: bocage.CellMatch{From: bocage.Side{Namespaces: []string{"shop"}}},
			Never: []bocage.CellMatch{{From: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}}}}),
			"Guardrail g spec.never[0]", compile.NothingMatches, false, "exclude each other"},
		{"a threat to nobody", threat(bocage.ThreatConditionSpec{Workload: "shop/gone", Level: bocage.LevelWatch}),
			"ThreatCondition t spec.workload", compile.UnknownWorkload, true, "shop/gone"},
		{"a threat with an unknown profile", threat(bocage.ThreatConditionSpec{Workload: "shop/web", Level: bocage.LevelDeepen, Profile: "none"}),
			"ThreatCondition t spec.profile", compile.UnknownProfile, true, "not inspected"},
		{"an expired threat", threat(bocage.ThreatConditionSpec{Workload: "shop/web", Level: bocage.LevelQuarantine, Expires: policytest.Now}),
			"ThreatCondition t", compile.Expired, false, "ended at"},
		{"automation where scopes observe", func(in *compile.Input) {
			in.Scopes = nil
			threat(bocage.ThreatConditionSpec{Workload: "shop/web", Level: bocage.LevelQuarantine})(in)
		}, "ThreatCondition t spec.level", compile.NotEnforced, false, "no Scope enforces"},
		{"a quarantine of nobody", func(in *compile.Input) {
			in.Quarantines = append(in.Quarantines, &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "q"}, Spec: bocage.QuarantineSpec{Workload: "shop/gone"}})
		}, "Quarantine q spec.workload", compile.UnknownWorkload, true, "shop/gone"},
		{"an address that is taken", func(in *compile.Input) {
			w := workload(9, "shop/thief")
			w.Spec.Addresses = append(w.Spec.Addresses, address(1))
			in.Workloads = append(in.Workloads, w)
		}, "Workload shop/thief spec.addresses", compile.AddressTaken, true, "10.0.0.1 is the address of the older workload shop/api"},
		{"an interface that is taken", func(in *compile.Input) {
			w := workload(9, "shop/thief")
			w.Spec.Interface = "v1"
			in.Workloads = append(in.Workloads, w)
		}, "Workload shop/thief spec.interface", compile.InterfaceTaken, true, "shop/api"},
		{"a workload without a number", func(in *compile.Input) {
			w := workload(9, "shop/new")
			w.Status.Identity = 0
			in.Workloads = append(in.Workloads, w)
		}, "Workload shop/new status.identity", compile.NoIdentity, true, "no number"},
		{"a workload without a place", func(in *compile.Input) { in.Workloads[2].Spec.Interface = "" },
			"Workload shop/db spec.interface", compile.NotPlaced, false, "no enforcement point"},
		{"an external prefix that is a workload", func(in *compile.Input) {
			in.Applications[1].Spec.Provides[0].ToExternal = []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")}
		}, "Application shop/api spec.provides[0].toExternal", compile.InInventory, false, "shop/db"},
		{"an invalid object", func(in *compile.Input) {
			in.Applications = append(in.Applications, app("shop/bad", []bocage.Provide{{Name: "x"}}))
		}, "Application shop/bad", compile.Invalid, true, "spec.provides[0].port"},
		{"two faces on one port", func(in *compile.Input) {
			for _, d := range [][2]string{{"a", ""}, {"b", "SSH-2.0-other"}} {
				in.Decoys = append(in.Decoys, &bocage.Decoy{ObjectMeta: bocage.ObjectMeta{Name: d[0]}, Spec: bocage.DecoySpec{Protocol: "ssh", Port: 22, Banner: d[1]}})
			}
		}, "Decoy b spec.for", compile.PortTaken, true, "the face of Decoy a"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := shop()
			test.change(&in)
			out := compile.Compile(in)
			i := slices.IndexFunc(out.Findings(), func(f compile.Finding) bool { return f.Object.String() == test.object && f.Reason == test.reason })
			if i < 0 {
				t.Fatalf("no finding %s of %s in %v", test.reason, test.object, out.Findings())
			}
			f := out.Findings()[i]
			if f.Rejected != test.rejected || !strings.Contains(f.Message, test.message) {
				t.Errorf("rejected %v: %s", f.Rejected, f.Message)
			}
			if (test.reason == compile.Invalid) != (len(out.Faults) > 0) {
				t.Errorf("faults: %v", out.Faults)
			}
			if _, d := ask(out.Ruleset(), address(2), address(1), 8080); d.Verdict.Allowed() {
				t.Errorf("db reaches api by %v", d.By)
			}
		})
	}
}

// TestNestedPrefixes checks that what lies inside a prefix inherits what is said
// of it, and that more is said of the inside alone.
func TestNestedPrefixes(t *testing.T) {
	in := shop()
	wide, narrow := netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("203.0.113.128/25")
	in.Applications[0].Spec.Consumes = append(in.Applications[0].Spec.Consumes,
		bocage.Consume{External: bocage.ExternalPrefix(wide), Port: 443}, bocage.Consume{External: bocage.ExternalPrefix(narrow), Port: 8443})
	in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: bocage.GuardrailSpec{
		Never: []bocage.CellMatch{{To: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix("203.0.113.200/32")}}}}}}}
	rs := compile.Compile(in).Ruleset()
	for _, test := range []struct {
		destination string
		port        uint16
		want        bocage.ReasonCode
	}{
		{"203.0.113.1", 443, bocage.ReasonRule}, {"203.0.113.1", 8443, bocage.ReasonDefaultDeny},
		{"203.0.113.129", 443, bocage.ReasonRule}, {"203.0.113.129", 8443, bocage.ReasonRule},
		{"203.0.113.200", 443, bocage.ReasonGuardrail}, {"203.0.114.1", 443, bocage.ReasonDefaultDeny},
	} {
		if _, d := ask(rs, address(0), netip.MustParseAddr(test.destination), test.port); d.Code != test.want {
			t.Errorf("%s/%d: %s by %v", test.destination, test.port, d.Code, d.By)
		}
	}
}

// TestDataClasses checks that a class covers the ports that carry it and no other.
func TestDataClasses(t *testing.T) {
	in := shop()
	in.Applications = append(in.Applications, app("shop/db", []bocage.Provide{
		{Name: "sql", Port: 5432, Data: []string{"pci"}}, {Name: "metrics", Port: 9187}}))
	in.Applications[0].Spec.Consumes = append(in.Applications[0].Spec.Consumes, bocage.Consume{Service: "db"})
	in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "pci"}, Spec: bocage.GuardrailSpec{
		Match: bocage.CellMatch{To: bocage.Side{Data: []string{"pci"}}},
		Never: []bocage.CellMatch{{From: bocage.Side{Workload: ptr(named("web"))}}}}}}
	rs := compile.Compile(in).Ruleset()
	for port, want := range map[uint16]bocage.ReasonCode{5432: bocage.ReasonGuardrail, 9187: bocage.ReasonRule, 22: bocage.ReasonDefaultDeny} {
		if _, d := ask(rs, address(0), address(2), port); d.Code != want {
			t.Errorf("%d: %s by %v", port, d.Code, d.By)
		}
	}
	if _, d := ask(rs, address(0), address(2), 5432); d.By[0].String() != "Guardrail pci spec.never[0]" {
		t.Errorf("decided by %v", d.By)
	}
}

func ptr[T any](v T) *T { return &v }

// TestLevels checks what each level of a threat condition does to web.
func TestLevels(t *testing.T) {
	for _, level := range bocage.Levels() {
		for _, enforced := range []bool{true, false} {
			t.Run(fmt.Sprint(level, enforced), func(t *testing.T) {
				in := shop()
				if !enforced {
					in.Scopes = nil
				}
				in.Profiles = []*bocage.InspectionProfile{{ObjectMeta: bocage.ObjectMeta{Name: "deep"}, Spec: bocage.InspectionProfileSpec{Signatures: "alert tcp any any -> any any (sid:1;)\n"}}}
				in.ThreatConditions = []*bocage.ThreatCondition{{ObjectMeta: bocage.ObjectMeta{Name: "t"}, Spec: bocage.ThreatConditionSpec{
					Workload: "shop/web", Level: level, Profile: "deep", Expires: policytest.Now.Add(time.Hour)}}}
				out := compile.Compile(in)
				cut := level == bocage.LevelQuarantine && enforced
				if got := len(out.Ruleset().Refused) == 1; got != cut {
					t.Fatalf("cut off: %v", got)
				}
				if !out.Expires.Equal(policytest.Now.Add(time.Hour)) {
					t.Errorf("expires %s", out.Expires)
				}
				verdict, d := ask(out.Ruleset(), address(0), address(1), 8080)
				switch {
				case cut:
					if verdict != bocage.VerdictDrop || d.Code != bocage.ReasonQuarantine || d.By[0].String() != "ThreatCondition t spec.level" {
						t.Errorf("%s by %v", verdict, d.By)
					}
				case level == bocage.LevelWatch:
					if verdict != bocage.VerdictAllow || !d.Log {
						t.Errorf("%s, log %v", verdict, d.Log)
					}
				default:
					if verdict != bocage.VerdictInspect || !d.Log || d.Profile == 0 || out.Ruleset().Profiles[0].Name != "deep" {
						t.Errorf("%s, log %v, profile %d", verdict, d.Log, d.Profile)
					}
				}
				// What is refused holds where scopes only observe from restrict on.
				verdict, d = ask(out.Ruleset(), address(0), address(2), 5432)
				if want := !enforced && !level.Includes(bocage.LevelRestrict); verdict.Allowed() != want || !d.Log {
					t.Errorf("refused flow: %s, log %v", verdict, d.Log)
				}
				// Others are not concerned.
				if _, d := ask(out.Ruleset(), address(2), address(1), 5432); d.Log {
					t.Errorf("flows of others are kept in full detail")
				}
			})
		}
	}
}

// TestTwoDutiesToInspect checks that neither is lost.
func TestTwoDutiesToInspect(t *testing.T) {
	in := shop()
	profile := func(name, fail, signatures string) {
		in.Profiles = append(in.Profiles, &bocage.InspectionProfile{ObjectMeta: bocage.ObjectMeta{Name: name},
			Spec: bocage.InspectionProfileSpec{FailMode: fail, Signatures: signatures}})
		in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "require-" + name},
			Spec: bocage.GuardrailSpec{Require: &bocage.Duties{Inspect: name}}})
	}
	profile("b", "open", "# of b\ndrop tcp any any -> any any (msg:\"one\"; sid:1;)\ndrop tcp any any -> any any (msg:\"two\"; sid:2;)\n")
	profile("a", "closed", "drop tcp any any -> any any (msg:\"one\"; sid:1;)\nalert tcp any any -> any any (msg:\"three\"; sid:3;)")
	out := compile.Compile(in)
	if len(out.Ruleset().Profiles) != 1 {
		t.Fatalf("profiles: %v", out.Ruleset().Profiles)
	}
	p := out.Ruleset().Profiles[0]
	want := "drop tcp any any -> any any (msg:\"one\"; sid:1;)\nalert tcp any any -> any any (msg:\"three\"; sid:3;)\ndrop tcp any any -> any any (msg:\"two\"; sid:2;)\n"
	if p.Name != "a+b" || p.FailOpen || p.Signatures != want {
		t.Errorf("joined: %+v", p)
	}
	verdict, d := ask(out.Ruleset(), address(0), address(1), 8080)
	if verdict != bocage.VerdictInspect || d.Profile != p.Number || len(d.By) != 4 {
		t.Errorf("%s with %d by %v", verdict, d.Profile, d.By)
	}
	in.Profiles[0].Spec.Signatures = "drop tcp any any -> any any (msg:\"other\"; sid:3;)\n"
	out = compile.Compile(in)
	if !slices.ContainsFunc(out.Findings(), func(f compile.Finding) bool {
		return f.Reason == compile.SignatureTwice && f.Object.String() == "InspectionProfile b spec.signatures"
	}) {
		t.Errorf("findings: %v", out.Findings())
	}
}

// TestStableNumbers changes a site a little: what is not concerned keeps its
// numbers.
func TestStableNumbers(t *testing.T) {
	in := policytest.Site(500)
	before := compile.Compile(in).Ruleset()
	newcomer := workload(0, "ns0/newcomer")
	newcomer.Status.Identity, newcomer.Spec.Addresses[0], newcomer.Spec.Interface = 9000, netip.MustParseAddr("10.9.9.9"), "veth-new"
	in.Workloads = append(in.Workloads, newcomer)
	in.Applications[3].Spec.Provides[0].Port = 8081
	in.Profiles = append(in.Profiles, &bocage.InspectionProfile{ObjectMeta: bocage.ObjectMeta{Name: "aaa"}, Spec: bocage.InspectionProfileSpec{Signatures: "x"}})
	in.ThreatConditions = []*bocage.ThreatCondition{{ObjectMeta: bocage.ObjectMeta{Name: "t"}, Spec: bocage.ThreatConditionSpec{Workload: "ns1/w210", Level: bocage.LevelWatch, Expires: policytest.Now.Add(time.Hour)}}}
	after := compile.Compile(in).Ruleset()
	if before.Digest == after.Digest {
		t.Error("the digest is the same")
	}
	moved := 0
	for _, p := range before.Peers {
		if p.Workload != "" && after.Lookup(p.Prefix.Addr()).Group != p.Group {
			moved++
		}
	}
	if moved != 1 { // the one that is watched now
		t.Errorf("%d workloads have another group", moved)
	}
	known := map[bocage.DecisionID]string{}
	for _, d := range before.Decisions {
		known[d.ID] = fmt.Sprint(d.By)
	}
	lost := 0
	for _, d := range after.Decisions {
		if by, ok := known[d.ID]; !ok {
			lost++
		} else if by != fmt.Sprint(d.By) {
			t.Errorf("decision %s means something else: %v, was %s", d.ID, d.By, by)
		}
	}
	if lost > len(after.Decisions)/10 {
		t.Errorf("%d of %d decisions have other numbers", lost, len(after.Decisions))
	}
	if before.Profiles[0].Number != after.Profiles[0].Number {
		t.Error("the profile has another number")
	}
}

// TestDecoysShareAPort gives workloads different faces at one port.
func TestDecoysShareAPort(t *testing.T) {
	in := shop()
	decoy := func(name, banner string, side bocage.Side) {
		in.Decoys = append(in.Decoys, &bocage.Decoy{ObjectMeta: bocage.ObjectMeta{Name: name},
			Spec: bocage.DecoySpec{Protocol: "ssh", Port: 22, Banner: banner, For: side, From: bocage.Side{Namespaces: []string{"shop"}}}})
	}
	decoy("first", "SSH-2.0-a", bocage.Side{Workload: ptr(named("db"))})
	rs := compile.Compile(in).Ruleset()
	if len(rs.Decoys) != 1 || rs.Decoys[0].For != nil {
		t.Errorf("one decoy stands for any address: %v", rs.Decoys)
	}
	decoy("second", "SSH-2.0-b", bocage.Side{Workload: ptr(named("api"))})
	rs = compile.Compile(in).Ruleset()
	if len(rs.Decoys) != 2 || !slices.Equal(rs.Decoys[0].For, []netip.Prefix{netip.PrefixFrom(address(2), 32)}) {
		t.Errorf("decoys: %v", rs.Decoys)
	}
	for destination, want := range map[int]string{2: "Decoy first spec", 1: "Decoy second spec"} {
		verdict, d := ask(rs, address(0), address(destination), 22)
		if verdict != bocage.VerdictDecoy || d.Code != bocage.ReasonDefaultDeny || d.By[len(d.By)-1].String() != want {
			t.Errorf("to %d: %s (%s) by %v", destination, verdict, d.Code, d.By)
		}
	}
	if verdict, _ := ask(rs, netip.MustParseAddr("203.0.113.1"), address(2), 22); verdict != bocage.VerdictDrop {
		t.Errorf("from outside: %s", verdict)
	}
	// An allowed cell never meets a decoy.
	in.Applications[1].Spec.Provides[0].Port = 22
	if verdict, _ := ask(compile.Compile(in).Ruleset(), address(0), address(1), 22); verdict != bocage.VerdictAllow {
		t.Errorf("allowed: %s", verdict)
	}
}

// TestQuarantinesJoin keeps a workload cut off until the last one ends.
func TestQuarantinesJoin(t *testing.T) {
	in := shop()
	for i, until := range []time.Time{policytest.Now.Add(time.Hour), policytest.Now.Add(2 * time.Hour)} {
		in.Quarantines = append(in.Quarantines, &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("q%d", i)},
			Spec: bocage.QuarantineSpec{Workload: "shop/web", Until: until}})
	}
	refused := func() bocage.Refusal {
		rs := compile.Compile(in).Ruleset()
		if len(rs.Refused) != 1 {
			t.Fatalf("refused: %v", rs.Refused)
		}
		return rs.Refused[0]
	}
	if r := refused(); !r.Until.Equal(policytest.Now.Add(2 * time.Hour)) {
		t.Errorf("until %s", r.Until)
	}
	in.Quarantines = append(in.Quarantines, &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "q9"}, Spec: bocage.QuarantineSpec{Workload: "shop/web"}})
	if r := refused(); !r.Until.IsZero() {
		t.Errorf("until %s", r.Until)
	}
}
