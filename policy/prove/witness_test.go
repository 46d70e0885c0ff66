package prove

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// TestImaginesWhatIsThere holds the solver against drawn inventories, for every
// guardrail and declaration of drawn policies: a meeting that somebody there could
// have is imagined, and what is imagined is one, read flow by flow.
func TestImaginesWhatIsThere(t *testing.T) {
	there, imagined, asked, solved := 0, 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		if rapid.Bool().Draw(t, "names") {
			policytest.DrawNames(t, &in)
		}
		words := vocabularyOf(in)
		known := readerOf(in)
		owed := obligations(in)
		imagining := newWitnessFinder(words, owed)
		var all []witness
		var about []allowance
		for _, o := range owed {
			for _, a := range allowances(in) {
				f, possible := known.meeting(o, a)
				k := imagining.kind(a)
				near, besides := imagining.near(o, k)
				w, found := imagining.flow(o, k, near, besides)
				if _, alone := imagine(near, o, a); alone != found {
					t.Fatalf("%s and %s of Guardrail %s could meet: %t, and as others that are alike: %t\n%s", a.by, o.field, o.guardrail.Name, alone, found, policytest.Describe(in))
				}
				asked++
				if possible {
					there++
					if skipped := disjoint(o.cells, a.cells); skipped || !found {
						t.Fatalf("%s is a flow of %s and of %s of Guardrail %s, and none is imagined (skipped: %t)\n%s",
							f, a.by, o.field, o.guardrail.Name, skipped, policytest.Describe(in))
					}
				}
				if !found {
					continue
				}
				imagined++
				all, about = append(all, w), append(about, a)
				world := newWorld(in, []witness{w})
				world.in.Workloads = nil
				f, _ = world.place(w)
				if !readerOf(world.in).meets(o, a, f) {
					t.Fatalf("%s -> %s %s/%d is imagined for %s and %s of Guardrail %s, and is not of both\n%s",
						w.from, w.to, w.protocol, w.port, a.by, o.field, o.guardrail.Name, policytest.Describe(in))
				}
			}
		}
		solved += len(imagining.templates)
		// Together ends are one that are alike.
		world := newWorld(in, all)
		world.in.Workloads = nil
		flows, placed := make([]bocage.Flow, len(all)), make([]bool, len(all))
		for i, w := range all {
			flows[i], placed[i] = world.place(w)
		}
		together := readerOf(world.in)
		for i, w := range all {
			if placed[i] && !together.meets(w.obligation, about[i], flows[i]) {
				t.Fatalf("%s -> %s %s/%d is imagined for %s and %s of Guardrail %s, and among others is not of both\n%s",
					w.from, w.to, w.protocol, w.port, about[i].by, w.obligation.field, w.obligation.guardrail.Name, policytest.Describe(in))
			}
		}
	})
	t.Logf("%d meetings were there, %d imagined, %d of %d solved", there, imagined, solved, asked)
}

// reader reads boxes one flow at a time.
type reader struct {
	in        compile.Input
	zones     map[string]string
	groups    map[string]*bocage.AddressGroup
	workloads map[netip.Addr]*bocage.Workload
}

func readerOf(in compile.Input) *reader {
	r := &reader{in: in, zones: bocage.ZonesOfHosts(in.Zones), groups: map[string]*bocage.AddressGroup{}, workloads: map[netip.Addr]*bocage.Workload{}}
	for _, g := range in.AddressGroups {
		r.groups[g.Name] = g
	}
	for _, w := range in.Workloads {
		for _, a := range w.Spec.Addresses {
			r.workloads[a] = w
		}
	}
	return r
}

// meeting finds a flow at the boundaries of the input that both are about.
func (r *reader) meeting(o *obligation, a allowance) (bocage.Flow, bool) {
	var sources []netip.Addr
	for _, address := range policytest.Addresses() {
		if r.sides(slices.Concat(o.cells.from, a.cells.from), address, bocage.Flow{}) {
			sources = append(sources, address)
		}
	}
	var found bocage.Flow
	possible := false
	policytest.FlowsOf(sources, func(f bocage.Flow) {
		from, to := r.workloads[f.Source], r.workloads[f.Destination]
		if !possible && (from == nil || from != to) && r.meets(o, a, f) {
			found, possible = f, true
		}
	})
	return found, possible
}

// meets reports whether an obligation and what allows are about a flow.
func (r *reader) meets(o *obligation, a allowance, f bocage.Flow) bool {
	if a.name != "" && !bocage.NamesMayMean(f.Destination) || !r.lies(o.cells, f) || !r.lies(a.cells, f) || slices.ContainsFunc(o.excuses, func(b box) bool { return r.lies(b, f) }) {
		return false
	}
	if o.differ == "" {
		return true
	}
	from, to := r.workloads[f.Source], r.workloads[f.Destination]
	if from == nil || to == nil {
		return false
	}
	x, hasX := from.LabelsIn(r.zones[from.Spec.Host])[o.differ]
	y, hasY := to.LabelsIn(r.zones[to.Spec.Host])[o.differ]
	return hasX != hasY || x != y
}

func (r *reader) lies(b box, f bocage.Flow) bool {
	if !r.sides(b.from, f.Source, f) || !r.sides(b.to, f.Destination, f) {
		return false
	}
	for _, list := range b.ports {
		if len(list) > 0 && !slices.ContainsFunc(list, func(m bocage.PortMatch) bool { return at(f, m.Port, m.EndPort, m.Protocol) }) {
			return false
		}
	}
	return true
}

// sides reports whether all of them mean one end of a flow.
func (r *reader) sides(all []bocage.Side, address netip.Addr, f bocage.Flow) bool {
	return !slices.ContainsFunc(all, func(s bocage.Side) bool { return !r.means(s, address, f) })
}

func (r *reader) means(s bocage.Side, address netip.Addr, f bocage.Flow) bool {
	w := r.workloads[address]
	if s.Outside() {
		prefixes := slices.Clone(s.External)
		for _, name := range s.AddressGroups {
			if g := r.groups[name]; g != nil {
				prefixes = append(prefixes, g.Spec.Addresses...)
			}
		}
		return w == nil && slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return canonical(p).Contains(address) })
	}
	if w == nil {
		return len(s.Namespaces) == 0 && s.Workload == nil && len(s.Data) == 0
	}
	labels := w.LabelsIn(r.zones[w.Spec.Host])
	offers := func(a *bocage.Application) bool {
		return a.Namespace == w.Namespace && a.Spec.Workload.Matches(labels) && slices.ContainsFunc(a.Spec.Provides, func(p bocage.Provide) bool {
			return at(f, p.Port, p.EndPort, p.Protocol) && slices.ContainsFunc(p.Data, func(class string) bool { return slices.Contains(s.Data, class) })
		})
	}
	return (len(s.Namespaces) == 0 || slices.Contains(s.Namespaces, w.Namespace)) && (s.Workload == nil || s.Workload.Matches(labels)) &&
		(len(s.Data) == 0 || slices.ContainsFunc(r.in.Applications, offers))
}

func at(f bocage.Flow, port, end uint16, protocol string) bool {
	p, ports, err := bocage.Transport(port, end, protocol)
	return err == nil && p == f.Protocol && ports.Contains(f.DestinationPort)
}
