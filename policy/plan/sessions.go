package plan

import (
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
		cut = append(cut, candidate.CutSessions(h.Name, h.Status.Sessions, ports[h.Name], now)...)
	}
	return cut
}
