package prove

import (
	"strings"

	"bocage.dev/bocage"
)

// namedViolation looks for a way by name into a region that nobody may reach: for
// an address outside that would be let through if it went by a name that somebody
// consumes. Any address may.
func (p *prover) namedViolation(r region, excuses []excuse) string {
	if len(p.reach.named) == 0 || len(r.data) > 0 {
		return ""
	}
	names := make(map[bocage.Group]bocage.DomainName, len(p.rs.Names))
	for _, name := range p.rs.Names {
		names[name.Group] = bocage.DomainName(strings.Replace(string(name.Name), "*", "any", 1))
	}
	for _, rule := range p.reach.named {
		source := p.members[rule.From]
		if source == nil || len(source.workloads) == 0 || !in(rule.From, r.from) || !p.reach.everAllows(rule.Decision) {
			continue
		}
		ports := []uint16{rule.Ports.First}
		for _, s := range p.extent(r, bocage.GroupWorld) {
			if s.protocol == rule.Protocol && rule.Ports.Contains(s.ports.First) {
				ports = append(ports, s.ports.First)
			}
		}
		for _, to := range p.groups {
			if !in(to, r.to) || len(p.members[to].workloads) > 0 {
				continue
			}
			for _, port := range ports {
				f := bocage.Flow{Source: source.address, Destination: p.members[to].address, Protocol: rule.Protocol, DestinationPort: port, At: p.in.Now}
				if !p.covers(r, to, rule.Protocol, port) || p.rs.Lookup(f.Destination).Group != to || p.excused(excuses, rule.From, to, f) {
					continue
				}
				_, bare := p.rs.Decide(f)
				if _, reason := p.rs.DecideNamed(f, names[rule.To]); !bare.Would.Allowed() && reason.Would.Allowed() {
					d, _ := p.rs.Decision(reason.Decision)
					return p.flow(rule.From, to, rule.Protocol, port) + " as " + string(names[rule.To]) + " gets " + d.Verdict.String() + by(d)
				}
			}
		}
	}
	return ""
}

// excused reports whether an exception that is in force now covers a flow.
func (p *prover) excused(excuses []excuse, from, to bocage.Group, f bocage.Flow) bool {
	for _, e := range excuses {
		if e.holds(f.At) && in(from, e.region.from) && in(to, e.region.to) && p.covers(e.region, to, f.Protocol, f.DestinationPort) {
			return true
		}
	}
	return false
}
