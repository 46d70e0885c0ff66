package compile

import "bocage.dev/bocage"

// changed is what of a ruleset differs from the one before.
type changed struct {
	all   bool
	hosts map[string]bool
}

// Touches reports whether a host's part of the ruleset may differ from what it was
// in the compilation before, its generation and digest apart. After the first
// compilation every host is touched.
func (o Output) Touches(host string) bool {
	return o.changed == nil || o.changed.all || o.changed.hosts[host]
}

// noteChanged finds the hosts that the changed rules concern.
func (c *compiler) noteChanged() {
	out := c.book.changed
	out.hosts = map[string]bool{}
	if out.all {
		return
	}
	seen := make([]bool, len(c.pop.subjects))
	for _, list := range [2][]entry{c.grid.gone, c.grid.come} {
		for _, e := range list {
			if e.from == anyone || e.to == anyone {
				out.all = true
			}
			if out.all {
				return
			}
			seen[e.from], seen[e.to] = true, true
		}
	}
	for i, concerned := range seen {
		if concerned {
			for _, w := range c.pop.subjects[i].members {
				out.hosts[w.Spec.Host] = true
			}
		}
	}
}

// placements lists the decoys that some rule leads to, now or later.
func placements(all []bocage.DecoyPlacement, rules []bocage.Rule, decisions []bocage.Decision) []bocage.DecoyPlacement {
	diverting := map[bocage.DecisionID]bool{}
	then := map[bocage.DecisionID][]bocage.DecisionID{} // who a decision follows
	var divert func(id bocage.DecisionID)
	divert = func(id bocage.DecisionID) {
		if !diverting[id] {
			diverting[id] = true
			for _, before := range then[id] {
				divert(before)
			}
		}
	}
	for _, d := range decisions {
		if !d.Until.IsZero() {
			then[d.Then] = append(then[d.Then], d.ID)
		}
	}
	for _, d := range decisions {
		if d.Verdict == bocage.VerdictDecoy {
			divert(d.ID)
		}
	}
	ports := map[uint16]bool{}
	for _, r := range rules {
		if diverting[r.Decision] {
			ports[r.Ports.First] = true // a decoy's rule covers its one port
		}
	}
	var out []bocage.DecoyPlacement
	for _, p := range all {
		if ports[p.Port] {
			out = append(out, p)
		}
	}
	return out
}
