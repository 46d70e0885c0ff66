package compile

import (
	"slices"

	"bocage.dev/bocage"
)

// mostReasons is how many rules of a host may come from reasons. Where there
// would be more, the host refuses the same cells without them: its events name
// the wider refusal, and explanations, which read the objects, the precise one.
// Those of addresses outside stay for whoever consumes names: where the wider
// refusal merely lacks an allow, a name would open what the precise one closes.
const mostReasons = 1 << 14

// reasons spells out Ruleset.Reasons for single hosts: enforcement points know
// groups, not classes of them.
type reasons struct {
	bySender, byReceiver map[bocage.Group][]bocage.Rule  // by class
	senders, receivers   map[bocage.Group]bocage.Group   // group -> class
	sending, receiving   map[bocage.Group][]bocage.Group // class -> groups
	abroad               map[bocage.Group][]bocage.Group // class -> those of its groups that are outside
	outside, naming      map[bocage.Group]bool           // addresses outside, and groups with rules towards names
	most                 int
}

func newReasons(rs *bocage.Ruleset) *reasons {
	if len(rs.Reasons) == 0 {
		return nil
	}
	r := &reasons{
		bySender: map[bocage.Group][]bocage.Rule{}, byReceiver: map[bocage.Group][]bocage.Rule{},
		senders: map[bocage.Group]bocage.Group{}, receivers: map[bocage.Group]bocage.Group{},
		sending: map[bocage.Group][]bocage.Group{}, receiving: map[bocage.Group][]bocage.Group{},
		abroad: map[bocage.Group][]bocage.Group{}, outside: map[bocage.Group]bool{bocage.GroupWorld: true}, naming: map[bocage.Group]bool{}, most: mostReasons,
	}
	if len(rs.Names) > 0 {
		names := make(map[bocage.Group]bool, len(rs.Names))
		for _, name := range rs.Names {
			names[name.Group] = true
		}
		for _, rule := range rs.Rules {
			if names[rule.To] {
				r.naming[rule.From] = true
			}
		}
		eachNaming(rs, func(from bocage.Group) { r.naming[from] = true })
		for _, peer := range rs.Peers {
			if peer.Identity == bocage.IdentityWorld {
				r.outside[peer.Group] = true
			}
		}
	}
	for _, rule := range rs.Reasons {
		r.bySender[rule.From] = append(r.bySender[rule.From], rule)
		r.byReceiver[rule.To] = append(r.byReceiver[rule.To], rule)
	}
	know := func(g bocage.GroupInfo) {
		if _, known := r.bySender[g.Sender]; known {
			r.senders[g.Group] = g.Sender
			r.sending[g.Sender] = append(r.sending[g.Sender], g.Group)
		}
		if _, known := r.byReceiver[g.Receiver]; known {
			r.receivers[g.Group] = g.Receiver
			r.receiving[g.Receiver] = append(r.receiving[g.Receiver], g.Group)
			if r.outside[g.Group] {
				r.abroad[g.Receiver] = append(r.abroad[g.Receiver], g.Group)
			}
		}
	}
	know(bocage.GroupInfo{Group: bocage.GroupWorld, Sender: bocage.GroupWorld, Receiver: bocage.GroupWorld})
	for _, g := range rs.Groups {
		know(g)
	}
	return r
}

// spellOut adds to a host's rules, which are in order, what the reasons say of the
// groups behind its ports.
func (r *reasons) spellOut(local map[bocage.Group]bool, rules []bocage.Rule) []bocage.Rule {
	if r == nil {
		return rules
	}
	var count int
	r.each(local, func(reason bocage.Rule) bool { count++; return count <= r.most })
	if count == 0 || count > r.most && len(r.naming) == 0 {
		return rules
	}
	type pair struct{ from, to bocage.Group }
	exact := map[pair][]bocage.Rule{}
	for _, rule := range rules {
		exact[pair{rule.From, rule.To}] = append(exact[pair{rule.From, rule.To}], rule)
	}
	out := slices.Clone(rules)
	each := r.each
	if count > r.most {
		each = r.eachNamed
	}
	each(local, func(reason bocage.Rule) bool {
		out = append(out, besides(reason, exact[pair{reason.From, reason.To}])...)
		return true
	})
	slices.SortFunc(out, bocage.CompareRules)
	return out
}

// each visits what the reasons say of pairs of groups of which one is local,
// until visit says no.
func (r *reasons) each(local map[bocage.Group]bool, visit func(bocage.Rule) bool) {
	for group := range local {
		for _, reason := range r.bySender[r.senders[group]] {
			for _, to := range r.receiving[reason.To] {
				rule := reason
				rule.From, rule.To = group, to
				if !visit(rule) {
					return
				}
			}
		}
		for _, reason := range r.byReceiver[r.receivers[group]] {
			for _, from := range r.sending[reason.From] {
				rule := reason
				rule.From, rule.To = from, group
				if !local[from] && !visit(rule) {
					return
				}
			}
		}
	}
}

// eachNamed is each of those alone that names may open: from local groups with rules
// towards names to addresses outside.
func (r *reasons) eachNamed(local map[bocage.Group]bool, visit func(bocage.Rule) bool) {
	for group := range local {
		if !r.naming[group] {
			continue
		}
		for _, reason := range r.bySender[r.senders[group]] {
			for _, to := range r.abroad[reason.To] {
				rule := reason
				rule.From, rule.To = group, to
				if !visit(rule) {
					return
				}
			}
		}
	}
}

// besides returns what a reason says where the rules of the pair itself say
// nothing.
func besides(reason bocage.Rule, rules []bocage.Rule) []bocage.Rule {
	left := []bocage.Rule{reason}
	for _, rule := range rules {
		switch rule.Protocol {
		case bocage.ProtocolAny:
			return nil // it says something of every cell
		case reason.Protocol:
			left = cutOut(left, rule.Ports)
		}
	}
	return left
}

// cutOut cuts a range of ports out of rules.
func cutOut(rules []bocage.Rule, ports bocage.PortRange) []bocage.Rule {
	var out []bocage.Rule
	for _, rule := range rules {
		if ports.First > rule.Ports.Last || ports.Last < rule.Ports.First {
			out = append(out, rule)
			continue
		}
		whole := rule.Ports
		if ports.First > whole.First {
			rule.Ports = bocage.PortRange{First: whole.First, Last: ports.First - 1}
			out = append(out, rule)
		}
		if ports.Last < whole.Last {
			rule.Ports = bocage.PortRange{First: ports.Last + 1, Last: whole.Last}
			out = append(out, rule)
		}
	}
	return out
}
