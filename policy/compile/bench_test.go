package compile_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// The size of the varied site that the figures are told of.
const (
	teams           = 60
	guardrails      = 57
	networkPolicies = 200
	clusterPolicies = 3
	quarantines     = 20
	perNamespace    = 41 // applications of one team in one environment
	workloadsPerApp = 10
)

var (
	environments = []string{"prod", "stage", "test", "dev"}
	tiers        = []string{"web", "api", "worker", "db"}
	classes      = []string{"none", "pii", "pci", "phi"}
)

// variedSite makes a data center of many kinds of workload: about two label sets
// for each application, 57 guardrails across all of them, 20 quarantines, and
// contracts of two halves and of one.
func variedSite(workloads, policies int) compile.Input {
	r := rand.New(rand.NewPCG(uint64(workloads), 7))
	in := compile.Input{Generation: 1, Now: policytest.Now}
	applications := policies - guardrails - quarantines - networkPolicies - clusterPolicies
	place := func(a int) (namespace, env string) {
		ns := a / perNamespace
		env = environments[ns%len(environments)]
		return fmt.Sprintf("team%d-%s", ns/len(environments), env), env
	}
	for i := range workloads {
		a := i % applications
		namespace, env := place(a)
		in.Workloads = append(in.Workloads, &bocage.Workload{
			ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("w%d", i), Labels: map[string]string{
				"app": fmt.Sprintf("app%d", a), "tier": tiers[a%len(tiers)], "env": env, "team": fmt.Sprintf("team%d", a/perNamespace/4%teams),
				"data": classes[a/7%len(classes)], "zone": fmt.Sprintf("z%d", (a+i/applications%2)%6),
			}},
			Spec: bocage.WorkloadSpec{Host: fmt.Sprintf("h%d", i%max(workloads/25, 1)), Interface: fmt.Sprintf("v%d", i),
				Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}},
			Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)},
		})
	}
	for a := range applications {
		in.Applications = append(in.Applications, variedApplication(a, applications, place, r))
	}
	in.Guardrails = variedGuardrails()
	for i := range quarantines {
		in.Quarantines = append(in.Quarantines, quarantineOf(in, i, i*workloads/quarantines))
	}
	for i := range networkPolicies {
		in.NetworkPolicies = append(in.NetworkPolicies, networkPolicyOf(in.Workloads[i*workloads/networkPolicies], fmt.Sprintf("p%d", i)))
	}
	for i := range clusterPolicies {
		in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies,
			clusterPolicyOf(fmt.Sprintf("c%d", i), int32(i), in.Workloads[i].Namespace, in.Workloads[workloads/2+i].Namespace))
	}
	in.Profiles = []*bocage.InspectionProfile{
		{ObjectMeta: bocage.ObjectMeta{Name: "sql"}, Spec: bocage.InspectionProfileSpec{Signatures: "alert tcp any any -> any any (sid:1;)"}},
		{ObjectMeta: bocage.ObjectMeta{Name: "web"}, Spec: bocage.InspectionProfileSpec{Signatures: "alert tcp any any -> any any (sid:2;)"}},
	}
	in.Scopes = []*bocage.Scope{{ObjectMeta: bocage.ObjectMeta{Name: "all"}, Spec: bocage.ScopeSpec{Mode: bocage.ModeEnforce}}}
	return sortedInput(in)
}

func variedApplication(a, applications int, place func(int) (string, string), r *rand.Rand) *bocage.Application {
	namespace, _ := place(a)
	app := &bocage.Application{
		ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("app%d", a)},
		Spec: bocage.ApplicationSpec{
			Workload: bocage.Selector{MatchLabels: map[string]string{"app": fmt.Sprintf("app%d", a)}},
			Provides: []bocage.Provide{{Name: "main", Port: uint16(8000 + a%100)}},
		},
	}
	switch a % 20 {
	case 0:
		app.Spec.Provides[0].ToNamespaces = []string{"*"}
	case 1:
		app.Spec.Provides = append(app.Spec.Provides, bocage.Provide{Name: "cards", Port: 5432, Data: []string{"pci"}})
	case 2:
		app.Spec.Provides[0].ToExternal = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, byte(a >> 8), byte(a)}), 32)}
	case 4, 5, 6, 7:
		app.Spec.Provides[0].To = bocage.Selector{MatchLabels: map[string]string{"tier": tiers[a%len(tiers)]}}
	case 3:
		app.Spec.Consumes = append(app.Spec.Consumes, bocage.Consume{
			External: bocage.ExternalPrefix(netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(a >> 16), byte(a >> 8), byte(a)}), 32)), Port: 443})
	}
	first := a / perNamespace * perNamespace
	for range 2 {
		if n := first + r.IntN(perNamespace); n != a && n < applications {
			app.Spec.Consumes = append(app.Spec.Consumes, bocage.Consume{Service: fmt.Sprintf("app%d", n), Interface: "main"})
		}
	}
	if n := r.IntN(applications) / 20 * 20; n != a {
		other, _ := place(n)
		app.Spec.Consumes = append(app.Spec.Consumes, bocage.Consume{Service: fmt.Sprintf("%s/app%d", other, n), Interface: "main"})
	}
	return app
}

func variedGuardrails() []*bocage.Guardrail {
	side := func(key string, values ...string) bocage.Side {
		return bocage.Side{Workload: &bocage.Selector{MatchExpressions: []bocage.Requirement{{Key: key, Operator: "In", Values: values}}}}
	}
	var out []*bocage.Guardrail
	add := func(name string, spec bocage.GuardrailSpec) {
		out = append(out, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: spec})
	}
	for _, from := range environments {
		for _, to := range environments {
			if from != to { // twelve
				add("never-"+from+"-"+to, bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: side("env", from), To: side("env", to)}}})
			}
		}
	}
	for i, data := range classes[1:] { // nine
		add("inspect-"+data, bocage.GuardrailSpec{Match: bocage.CellMatch{From: side("env", "prod"), To: side("data", data)},
			Require: &bocage.Duties{Inspect: []string{"sql", "web"}[i%2]}})
		add("log-"+data, bocage.GuardrailSpec{Match: bocage.CellMatch{To: side("data", data)}, Require: &bocage.Duties{Log: "full"}})
		add("web-"+data, bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: side("tier", "web"), To: side("data", data),
			Ports: []bocage.PortMatch{{Port: 5432}}}}})
	}
	add("cards", bocage.GuardrailSpec{Match: bocage.CellMatch{To: bocage.Side{Data: []string{"pci"}}},
		Never: []bocage.CellMatch{{From: side("env", "test", "dev")}}, Require: &bocage.Duties{Inspect: "sql", Log: "full"}})
	add("dns", bocage.GuardrailSpec{Grant: []bocage.CellMatch{{To: side("app", "app0"), Ports: []bocage.PortMatch{{Port: 53, Protocol: "UDP"}}}}})
	add("scrape", bocage.GuardrailSpec{Grant: []bocage.CellMatch{{From: side("app", "app4"), To: side("env", environments...),
		Ports: []bocage.PortMatch{{Port: 9100}}}}})
	for i := 0; len(out) < guardrails; i++ {
		team := fmt.Sprintf("team%d", i)
		add("team-"+team, bocage.GuardrailSpec{Match: bocage.CellMatch{From: side("team", team), To: side("zone", fmt.Sprintf("z%d", i%6))},
			Require: &bocage.Duties{Log: "full", Rate: "100/s"}})
	}
	return out
}

// networkPolicyOf lets only the web tier of its namespace reach workloads like the
// given one.
func networkPolicyOf(w *bocage.Workload, name string) *bocage.NetworkPolicy {
	return &bocage.NetworkPolicy{ObjectMeta: bocage.ObjectMeta{Namespace: w.Namespace, Name: name}, Spec: bocage.NetworkPolicySpec{
		PodSelector: bocage.Selector{MatchLabels: map[string]string{"app": w.Labels["app"]}},
		Ingress:     []bocage.NetworkPolicyIngressRule{{From: []bocage.NetworkPolicyPeer{{PodSelector: &bocage.Selector{MatchLabels: map[string]string{"tier": "web"}}}}}}}}
}

// clusterPolicyOf refuses one namespace what another sends.
func clusterPolicyOf(name string, priority int32, to, from string) *bocage.ClusterNetworkPolicy {
	namespace := func(name string) *bocage.Selector {
		return &bocage.Selector{MatchLabels: map[string]string{bocage.LabelNamespaceName: name}}
	}
	return &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.ClusterNetworkPolicySpec{
		Tier: bocage.TierAdmin, Priority: &priority, Subject: bocage.ClusterNetworkPolicySubject{Namespaces: namespace(to)},
		Ingress: []bocage.ClusterNetworkPolicyIngressRule{{Action: bocage.ActionDeny, From: []bocage.ClusterNetworkPolicyIngressPeer{{Namespaces: namespace(from)}}}}}}
}

func quarantineOf(in compile.Input, i, workload int) *bocage.Quarantine {
	return &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("q%d", i)},
		Spec: bocage.QuarantineSpec{Workload: in.Workloads[workload].NamespacedName(), Reason: "measured"}}
}

// BenchmarkFull100k compiles a site of 100,000 workloads and 10,000 policies
// from nothing.
func BenchmarkFull100k(b *testing.B) { benchmarkFull(b, 100_000, 10_000) }

// BenchmarkFull300k compiles a site of 300,000 workloads and 30,000 policies.
func BenchmarkFull300k(b *testing.B) { benchmarkFull(b, 300_000, 30_000) }

func benchmarkFull(b *testing.B, workloads, policies int) {
	in := variedSite(workloads, policies)
	runtime.GC()
	before := heap()
	var peak uint64
	var out compile.Output
	started := cpu()
	for b.Loop() {
		out = compile.Compile(in)
		peak = max(peak, heap())
	}
	b.ReportMetric((cpu()-started).Seconds()/float64(b.N), "cpu-s/op")
	b.ReportMetric(float64(peak)/(1<<20), "heap-MiB")
	b.ReportMetric(float64(before)/(1<<20), "input-MiB")
	b.ReportMetric(float64(resident())/(1<<20), "rss-peak-MiB")
	b.ReportMetric(float64(len(out.Ruleset().Rules)), "rules")
	b.ReportMetric(float64(len(out.Ruleset().Reasons)), "reasons")
	b.ReportMetric(float64(len(out.Ruleset().Decisions)), "decisions")
	b.ReportMetric(float64(len(out.Ruleset().Groups)), "groups")
}

// heap is what the heap holds, dead objects included.
func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// cpu is the processor time of this process.
func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// resident is the most memory that this process ever had, in bytes.
func resident() uint64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	number, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	kib, _ := strconv.ParseUint(number, 10, 64)
	return kib << 10
}

// BenchmarkCompile is the same over sites of several sizes.
func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			in := policytest.Site(n)
			b.ReportAllocs()
			rules := 0
			for b.Loop() {
				rules = len(compile.Compile(in).Ruleset().Rules)
			}
			b.ReportMetric(float64(rules), "rules")
		})
	}
}

// sortedInput puts workloads and applications in the order of their names, as a
// store lists them.
func sortedInput(in compile.Input) compile.Input {
	in.Workloads, in.Applications = byNames(in.Workloads), byNames(in.Applications)
	return in
}

func byNames[T bocage.Resource](list []T) []T {
	slices.SortFunc(list, func(a, b T) int {
		return cmp.Or(cmp.Compare(a.Meta().Namespace, b.Meta().Namespace), cmp.Compare(a.Meta().Name, b.Meta().Name))
	})
	return list
}

// BenchmarkOneEdit100k changes one object after the other in a site of 100,000
// workloads and 10,000 policies: a hundred edits of every kind, in turn. The figures
// are the time until what decides is known, by the clock and in processor time of the
// thread that waits for it, and, as all-cpu, the processor time of the whole process:
// of the other hands, and of collecting garbage meanwhile. Findings, for which only
// authors wait, are there after told-ms.
func BenchmarkOneEdit100k(b *testing.B) {
	in := variedSite(100_000, 10_000)
	m := newMeasured(b)
	compiler := compile.NewCompiler()
	compiler.Compile(in)
	r := rand.New(rand.NewPCG(1, 2))
	n := 0
	for b.Loop() {
		for range 100 {
			for _, kind := range editKinds {
				in = kind.edit(in, r, n)
				m.measure(kind.name, func() compile.Output { return compiler.Compile(in) })
			}
			n++
		}
	}
	m.report()
}

// BenchmarkQuarantine100k cuts a workload off and lets it free again, 500 times.
func BenchmarkQuarantine100k(b *testing.B) {
	in := variedSite(100_000, 10_000)
	m := newMeasured(b)
	compiler := compile.NewCompiler()
	compiler.Compile(in)
	standing := in.Quarantines
	n := 0
	for b.Loop() {
		for range 1000 {
			if n++; n%2 == 1 {
				in.Quarantines = append(slices.Clone(standing), quarantineOf(in, 1000+n, n*7919%len(in.Workloads)))
			} else {
				in.Quarantines = standing
			}
			m.measure("quarantine", func() compile.Output { return compiler.Compile(in) })
		}
	}
	m.report()
}

// measured collects processor time.
type measured struct {
	b          *testing.B
	wall, told map[string][]time.Duration
	own, with  map[string][]time.Duration
	between    time.Duration // of collections between measurements
	collection []metrics.Sample
}

// newMeasured ties the benchmark to its thread, so that the collector works on others.
func newMeasured(b *testing.B) *measured {
	runtime.LockOSThread()
	b.Cleanup(runtime.UnlockOSThread)
	return &measured{b: b, wall: map[string][]time.Duration{}, told: map[string][]time.Duration{}, own: map[string][]time.Duration{}, with: map[string][]time.Duration{}, collection: []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}}
}

// rest collects garbage between edits, as a controller does when it has nothing
// else to do (policy/garbage.go): what that costs is told apart, of all edits together.
func (m *measured) rest() {
	metrics.Read(m.collection)
	if live, all := m.collection[0].Value.Uint64(), m.collection[1].Value.Uint64(); all > live+live/2 {
		before := processorTime(m.b, unix.CLOCK_PROCESS_CPUTIME_ID)
		runtime.GC()
		m.between += processorTime(m.b, unix.CLOCK_PROCESS_CPUTIME_ID) - before
	}
}

func (m *measured) measure(name string, do func() compile.Output) {
	m.rest()
	own, with := processorTime(m.b, unix.CLOCK_THREAD_CPUTIME_ID), processorTime(m.b, unix.CLOCK_PROCESS_CPUTIME_ID)
	began := time.Now()
	out := do()
	wall := time.Since(began)
	own, with = processorTime(m.b, unix.CLOCK_THREAD_CPUTIME_ID)-own, processorTime(m.b, unix.CLOCK_PROCESS_CPUTIME_ID)-with
	out.Told()
	told := time.Since(began)
	for _, name := range []string{"all", name} {
		m.told[name] = append(m.told[name], told)
		m.wall[name] = append(m.wall[name], wall)
		m.own[name], m.with[name] = append(m.own[name], own), append(m.with[name], with)
	}
}

func (m *measured) report() {
	m.b.ReportMetric(m.between.Seconds()*1000/float64(len(m.own["all"])), "collected-between-cpu-ms/edit")
	for name := range m.own {
		percentiles(m.b, name+"-ms", m.wall[name])
		percentiles(m.b, name+"-told-ms", m.told[name])
		percentiles(m.b, name+"-cpu-ms", m.own[name])
		percentiles(m.b, name+"-all-cpu-ms", m.with[name])
	}
}

func percentiles(b *testing.B, name string, took []time.Duration) {
	slices.Sort(took)
	for _, p := range []float64{50, 99, 99.9} {
		if p > 99 && len(took) < 1000 {
			break // that would be the worst
		}
		b.ReportMetric(took[min(int(float64(len(took))*p/100), len(took)-1)].Seconds()*1000, fmt.Sprintf("p%v-%s", p, name))
	}
}

// processorTime is what a clock of processor time shows, to the nanosecond.
func processorTime(b *testing.B, clock int32) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

type editKind struct {
	name string
	edit func(in compile.Input, r *rand.Rand, n int) compile.Input
}

// editKinds are changes of one object each. The even ones of a kind that adds
// something add it, the odd ones take it away again.
var editKinds = []editKind{
	{"ports", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		return editApplication(in, r, func(a *bocage.Application) { a.Spec.Provides[0].Port = uint16(20_000 + n%40_000) })
	}},
	{"peers", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		return editApplication(in, r, func(a *bocage.Application) {
			a.Spec.Consumes = append(a.Spec.Consumes, bocage.Consume{Service: in.Applications[r.IntN(len(in.Applications))].NamespacedName()})
		})
	}},
	// Both halves of a contract are there already: the provider lets everybody in.
	{"contract", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		return editApplication(in, r, func(a *bocage.Application) {
			open := r.IntN(len(in.Applications)/20) * 20
			for _, provider := range in.Applications {
				if provider.Name == fmt.Sprintf("app%d", open) {
					a.Spec.Consumes = append(a.Spec.Consumes, bocage.Consume{Service: provider.NamespacedName(), Interface: "main"})
				}
			}
		})
	}},
	{"addresses", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		return editApplication(in, r, func(a *bocage.Application) {
			a.Spec.Consumes = append(a.Spec.Consumes, bocage.Consume{Port: 443,
				External: bocage.ExternalPrefix(netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}), 32))})
		})
	}},
	// Every tier is asked for somewhere already: see variedApplication.
	{"selector", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		return editApplication(in, r, func(a *bocage.Application) {
			a.Spec.Provides[0].To = bocage.Selector{MatchLabels: map[string]string{"tier": tiers[r.IntN(len(tiers))]}}
		})
	}},
	{"question", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		return editApplication(in, r, func(a *bocage.Application) {
			w := in.Workloads[r.IntN(len(in.Workloads))] // nobody asks for names yet
			a.Spec.Provides[0].To = bocage.Selector{MatchLabels: map[string]string{bocage.LabelName: w.Name}}
		})
	}},
	{"guardrail", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		i := r.IntN(guardrails)
		g := *in.Guardrails[i]
		switch {
		case len(g.Spec.Never) > 0:
			g.Spec.Never = []bocage.CellMatch{g.Spec.Never[0]}
			g.Spec.Never[0].Ports = []bocage.PortMatch{{Port: uint16(1 + n%1000)}}
		case g.Spec.Require != nil:
			g.Spec.Require = &bocage.Duties{Log: "full", Rate: fmt.Sprintf("%d/s", 1+n)}
		default:
			g.Spec.Grant = []bocage.CellMatch{g.Spec.Grant[0]}
			g.Spec.Grant[0].Ports = []bocage.PortMatch{{Port: uint16(1 + n%1000)}}
		}
		in.Guardrails = replaced(in.Guardrails, i, &g)
		return in
	}},
	{"new-never", guardrailOf("zz-never", func(in compile.Input, r *rand.Rand) bocage.GuardrailSpec {
		return bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: teamOf(r), To: teamOf(r), Ports: []bocage.PortMatch{{Port: uint16(1 + r.IntN(9000))}}}}}
	})},
	{"new-duty", guardrailOf("zz-duty", func(in compile.Input, r *rand.Rand) bocage.GuardrailSpec {
		return bocage.GuardrailSpec{Match: bocage.CellMatch{From: teamOf(r)}, Require: &bocage.Duties{Log: "full"}}
	})},
	// Each is about a quarter of all flows, or of those of one environment.
	{"new-log", guardrailOf("zz-log", func(in compile.Input, r *rand.Rand) bocage.GuardrailSpec {
		return bocage.GuardrailSpec{Match: bocage.CellMatch{To: dataOf(r)}, Require: &bocage.Duties{Log: "full"}}
	})},
	{"new-inspect", guardrailOf("zz-inspect", func(in compile.Input, r *rand.Rand) bocage.GuardrailSpec {
		return bocage.GuardrailSpec{Match: bocage.CellMatch{From: environmentOf(r), To: dataOf(r)}, Require: &bocage.Duties{Inspect: "sql"}}
	})},
	{"exception", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		if len(in.Exceptions) > 0 {
			in.Exceptions = nil
			return in
		}
		g := slices.IndexFunc(in.Guardrails, func(g *bocage.Guardrail) bool { return g.Spec.Exceptions.Allowed })
		if g < 0 {
			allowing := *in.Guardrails[r.IntN(guardrails)]
			g, allowing.Spec.Exceptions.Allowed = 0, true
			in.Guardrails = replaced(in.Guardrails, slices.IndexFunc(in.Guardrails, func(g *bocage.Guardrail) bool { return g.Name == allowing.Name }), &allowing)
			return in
		}
		w := in.Workloads[r.IntN(len(in.Workloads))]
		in.Exceptions = []*bocage.Exception{{ObjectMeta: bocage.ObjectMeta{Name: "e"}, Spec: bocage.ExceptionSpec{Guardrail: in.Guardrails[g].Name, Reason: "measured",
			Match: bocage.CellMatch{From: bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{"app": w.Labels["app"]}}}},
			Until: in.Now.Add(time.Hour)}}}
		return in
	}},
	{"response", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		if in.Responses = nil; n%2 == 0 {
			in.Responses = []*bocage.Response{{ObjectMeta: bocage.ObjectMeta{Name: "r"}, Spec: bocage.ResponseSpec{
				When: bocage.ResponseWhen{Level: bocage.LevelWatch}, Then: bocage.ResponseThen{RefuseTo: []bocage.ResponseCell{{Ports: []bocage.PortMatch{{Port: 22}}}}}}}}
		}
		return in
	}},
	{"threat", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		if in.ThreatConditions = nil; n%2 == 0 {
			in.ThreatConditions = []*bocage.ThreatCondition{{ObjectMeta: bocage.ObjectMeta{Name: "t"}, Spec: bocage.ThreatConditionSpec{
				Workload: in.Workloads[r.IntN(len(in.Workloads))].NamespacedName(), Level: bocage.Levels()[n/2%4], Expires: in.Now.Add(time.Hour)}}}
		}
		return in
	}},
	{"scope", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		if in.Scopes = in.Scopes[:1:1]; n%2 == 0 {
			in.Scopes = append(in.Scopes, &bocage.Scope{ObjectMeta: bocage.ObjectMeta{Name: "team"}, Spec: bocage.ScopeSpec{Mode: bocage.ModeEnforce,
				Disposition: bocage.DispositionReject, Workload: *teamOf(r).Workload}})
		}
		return in
	}},
	{"address-group", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		in.AddressGroups = []*bocage.AddressGroup{{ObjectMeta: bocage.ObjectMeta{Name: "partners"}, Spec: bocage.AddressGroupSpec{
			Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 1, byte(n >> 8), byte(n)}), 32)}}}}
		return in
	}},
	{"namespace", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		in.Namespaces = []*bocage.Namespace{{ObjectMeta: bocage.ObjectMeta{Name: in.Workloads[r.IntN(len(in.Workloads))].Namespace,
			Labels: map[string]string{"tenant": fmt.Sprint(n % 5)}}}}
		return in
	}},
	{"zone", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		in.Zones = []*bocage.Zone{{ObjectMeta: bocage.ObjectMeta{Name: "z"}, Spec: bocage.ZoneSpec{Hosts: []string{in.Workloads[r.IntN(len(in.Workloads))].Spec.Host}}}}
		return in
	}},
	{"network-policy", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		if in.NetworkPolicies = in.NetworkPolicies[:networkPolicies:networkPolicies]; n%2 == 0 {
			in.NetworkPolicies = append(in.NetworkPolicies, networkPolicyOf(in.Workloads[r.IntN(len(in.Workloads))], "zz"))
		}
		return in
	}},
	{"network-policy-ports", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		i := r.IntN(networkPolicies)
		p := *in.NetworkPolicies[i]
		p.Spec.Ingress = []bocage.NetworkPolicyIngressRule{{From: p.Spec.Ingress[0].From,
			Ports: []bocage.NetworkPolicyPort{{Port: &bocage.IntOrString{Number: int32(1000 + n)}}}}}
		in.NetworkPolicies = replaced(in.NetworkPolicies, i, &p)
		return in
	}},
	{"cluster-policy", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		if in.ClusterNetworkPolicies = in.ClusterNetworkPolicies[:clusterPolicies:clusterPolicies]; n%2 == 0 {
			in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies,
				clusterPolicyOf("zz", 10, in.Workloads[r.IntN(len(in.Workloads))].Namespace, in.Workloads[r.IntN(len(in.Workloads))].Namespace))
		}
		return in
	}},
	{"workload-in", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		at := r.IntN(len(in.Workloads))
		w := *in.Workloads[at]
		w.Name += "-" + fmt.Sprint(n)
		w.Spec.Interface, w.Status.Identity = fmt.Sprintf("n%d", n), bocage.IdentityFirst+bocage.Identity(1_000_000+n)
		w.Spec.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{11, byte(n >> 16), byte(n >> 8), byte(n)})}
		in.Workloads = slices.Insert(slices.Clone(in.Workloads), at+1, &w)
		return in
	}},
	{"workload-out", func(in compile.Input, r *rand.Rand, n int) compile.Input {
		at := r.IntN(len(in.Workloads))
		in.Workloads = slices.Delete(slices.Clone(in.Workloads), at, at+1)
		return in
	}},
	{"workload-moved", editWorkload(func(w *bocage.Workload, r *rand.Rand, n int) {
		w.Spec.Host, w.Spec.Interface = fmt.Sprintf("h%d", r.IntN(4000)), fmt.Sprintf("m%d", n)
	})},
	{"workload-addressed", editWorkload(func(w *bocage.Workload, r *rand.Rand, n int) {
		w.Spec.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{12, byte(n >> 16), byte(n >> 8), byte(n)})}
	})},
	{"workload-relabelled", editWorkload(func(w *bocage.Workload, r *rand.Rand, n int) {
		labels := maps.Clone(w.Labels)
		labels["data"], labels["zone"] = classes[r.IntN(len(classes))], fmt.Sprintf("z%d", r.IntN(6))
		w.Labels = labels
	})},
}

// guardrailOf adds a guardrail, or takes the one of the name away that it added.
func guardrailOf(name string, spec func(in compile.Input, r *rand.Rand) bocage.GuardrailSpec) func(compile.Input, *rand.Rand, int) compile.Input {
	return func(in compile.Input, r *rand.Rand, n int) compile.Input {
		named := func(g *bocage.Guardrail) bool { return g.Name == name }
		if at := slices.IndexFunc(in.Guardrails, named); at >= 0 {
			in.Guardrails = slices.Delete(slices.Clone(in.Guardrails), at, at+1)
		} else {
			in.Guardrails = append(slices.Clone(in.Guardrails), &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: spec(in, r)})
		}
		return in
	}
}

func dataOf(r *rand.Rand) bocage.Side { return labelled("data", classes[1+r.IntN(len(classes)-1)]) }

func environmentOf(r *rand.Rand) bocage.Side {
	return labelled("env", environments[r.IntN(len(environments))])
}

func labelled(key, value string) bocage.Side {
	return bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{key: value}}}
}

func teamOf(r *rand.Rand) bocage.Side {
	return labelled("team", fmt.Sprintf("team%d", r.IntN(guardrails-24)))
}

func editWorkload(edit func(w *bocage.Workload, r *rand.Rand, n int)) func(compile.Input, *rand.Rand, int) compile.Input {
	return func(in compile.Input, r *rand.Rand, n int) compile.Input {
		at := r.IntN(len(in.Workloads))
		w := *in.Workloads[at]
		edit(&w, r, n)
		in.Workloads = replaced(in.Workloads, at, &w)
		return in
	}
}

func replaced[T any](list []T, at int, x T) []T {
	list = slices.Clone(list)
	list[at] = x
	return list
}

// editApplication changes one Application at random.
func editApplication(in compile.Input, r *rand.Rand, edit func(*bocage.Application)) compile.Input {
	in.Applications = slices.Clone(in.Applications)
	i := r.IntN(len(in.Applications))
	a := *in.Applications[i]
	a.Spec.Provides, a.Spec.Consumes = slices.Clone(a.Spec.Provides), slices.Clone(a.Spec.Consumes)
	edit(&a)
	in.Applications[i] = &a
	return in
}
