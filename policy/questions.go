package policy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
)

// ErrNoPolicy means that nothing was compiled yet.
var ErrNoPolicy = errors.New("no policy was compiled yet: try again in a moment")

// Explain answers why a flow gets its verdict under the policy in force.
func (p *Policy) Explain(_ context.Context, q bocage.ExplainQuery) (bocage.Explanation, error) {
	o := p.inForce()
	if o == nil {
		return bocage.Explanation{}, ErrNoPolicy
	}
	f, err := o.flow(q)
	if err != nil {
		return bocage.Explanation{}, err
	}
	return o.judge().Explain(o.output.Ruleset, f), nil
}

// inForce returns the active outcome, or the last one if none was activated by
// this process.
func (p *Policy) inForce() *outcome {
	if o := p.active.Load(); o != nil {
		return o
	}
	return p.current.Load()
}

// flow turns names into addresses.
func (o *outcome) flow(q bocage.ExplainQuery) (bocage.Flow, error) {
	f := bocage.Flow{DestinationPort: q.Port, Protocol: q.Protocol, At: q.At}
	if f.At.IsZero() {
		f.At = time.Now()
	}
	if f.Protocol == bocage.ProtocolAny {
		f.Protocol = bocage.ProtocolTCP
	}
	if !f.Protocol.HasPorts() {
		f.DestinationPort = 0
	}
	sources, err := o.addresses(q.From)
	if err != nil {
		return f, err
	}
	destinations, err := o.addresses(q.To)
	if err != nil {
		return f, err
	}
	for _, f.Source = range sources {
		for _, f.Destination = range destinations {
			if f.Source.Is4() == f.Destination.Is4() {
				return f, nil
			}
		}
	}
	return f, fmt.Errorf("%s and %s have no address of the same family", q.From, q.To)
}

// addresses resolves an address, "namespace/name" of a workload, or a name that
// only one workload has.
func (o *outcome) addresses(name string) ([]netip.Addr, error) {
	if address, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{address.Unmap()}, nil
	}
	var found []*bocage.Workload
	for _, w := range o.input.Workloads {
		if w.NamespacedName() == name || !strings.Contains(name, "/") && w.Name == name {
			found = append(found, w)
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("%q is neither an address nor a workload: see bocage get workloads", name)
	case len(found) > 1:
		names := make([]string, len(found))
		for i, w := range found {
			names[i] = w.NamespacedName()
		}
		slices.Sort(names)
		return nil, fmt.Errorf("%q could be %s: name the namespace too", name, strings.Join(names, " or "))
	case len(found[0].Spec.Addresses) == 0:
		return nil, fmt.Errorf("workload %s has no address", found[0].NamespacedName())
	}
	return found[0].Spec.Addresses, nil
}

// Decision tells what a decision of a generation says, given the low 32 bits of
// its number, as events carry them. Decisions are named by their content, so that
// a generation which this process did not compile is answered from the one in
// force where that has the same decision.
func (p *Policy) Decision(_ uint32, id bocage.DecisionID) (bocage.Decision, bool) {
	if id == 0 {
		return bocage.Decision{}, false
	}
	o := p.inForce()
	if o == nil {
		return bocage.Decision{}, false
	}
	if d, ok := o.output.Ruleset.Decision(id); ok {
		return d, true
	}
	return p.past.find(id)
}
