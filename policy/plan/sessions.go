package plan

import (
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// cutSessions finds the administrators' sessions, as hosts reported them, that a
// candidate would cut at the enforcement points that it places on their hosts.
func cutSessions(hosts []*bocage.Host, input compile.Input, candidate *bocage.Ruleset, now time.Time) []bocage.CutSession {
	ports := map[string][]bocage.Port{}
	for _, h := range hosts {
		if len(h.Status.Sessions) > 0 {
			ports[h.Name] = nil
		}
	}
	if len(ports) == 0 {
		return nil
	}
	for _, w := range input.Workloads {
		if _, asked := ports[w.Spec.Host]; !asked || w.Spec.Interface == "" || len(w.Spec.Addresses) == 0 {
			continue
		}
		peer := candidate.Lookup(w.Spec.Addresses[0])
		ports[w.Spec.Host] = append(ports[w.Spec.Host], bocage.Port{Interface: w.Spec.Interface, Identity: peer.Identity,
			Group: peer.Group, Workload: w.NamespacedName(), MAC: w.Spec.MAC, Addresses: w.Spec.Addresses})
	}
	var cut []bocage.CutSession
	for _, h := range hosts {
		cut = append(cut, candidate.CutSessions(h.Name, h.Status.Sessions, ports[h.Name], wiresOf(h, candidate), now)...)
	}
	return cut
}

// wiresOf lists the wires that a candidate makes of a host's interfaces. Of one that
// is left alone it makes none.
func wiresOf(h *bocage.Host, candidate *bocage.Ruleset) (wires []bocage.Wire) {
	spared := func(name string) bool {
		return slices.ContainsFunc(h.Status.Failsafe, func(e bocage.FailsafeEntry) bool { return e.Interface == name && e.Until.IsZero() })
	}
	for _, w := range candidate.Wires {
		if w.Host == h.Name && !spared(w.Inside) && !spared(w.Outside) {
			wires = append(wires, w)
		}
	}
	return wires
}
