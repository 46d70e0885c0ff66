package explain

import (
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// require adds every duty of a declaration, each with the field that says so.
// Duties that cannot be kept refuse. Where protected is said, whatever may cost a flow
// packets is not owed at all.
func (j *Judge) require(g *Judgement, d bocage.Duties, protected bool, field func(name string) bocage.Ref) {
	if profile := j.profiles[d.Inspect]; d.Inspect != "" && !(protected && (profile == nil || profile.MayRefuse())) {
		if by := field("inspect"); profile != nil {
			g.owe(bocage.Duties{Inspect: d.Inspect}, by)
		} else {
			g.Impossible = append(g.Impossible, by)
		}
	}
	if d.Log != "" {
		g.owe(bocage.Duties{Log: d.Log}, field("log"))
	}
	if d.Verify != "" && !protected {
		g.owe(bocage.Duties{Verify: d.Verify}, field("verify"))
	}
	if d.Rate != "" && !protected {
		g.owe(bocage.Duties{Rate: d.Rate}, field("rate"))
	}
	if d.Whole && !protected {
		g.owe(bocage.Duties{Whole: true}, field("whole"))
	}
	if d.Witness {
		g.owe(bocage.Duties{Witness: true}, field("witness"))
	}
	if d.Provenance {
		g.owe(bocage.Duties{Provenance: true}, field("provenance"))
	}
	if d.Assurance != "" && !protected {
		if by := field("assurance"); g.vouched(d.Assurance) {
			g.owe(bocage.Duties{Assurance: d.Assurance}, by)
		} else {
			g.Impossible = append(g.Impossible, by)
		}
	}
}

// vouched reports whether both ends' identities are vouched for that far. Ends
// outside have none.
func (g *Judgement) vouched(assurance string) bool {
	wanted, _ := bocage.AssuranceLevel(assurance)
	for _, p := range []party{g.Source, g.Destination} {
		if p.workload != nil && p.assurance() < wanted {
			return false
		}
	}
	return true
}

// owe joins one duty to those of the flow.
func (g *Judgement) owe(d bocage.Duties, by bocage.Ref) {
	o := &g.Owed
	switch {
	case d.Inspect != "":
		g.Profiles = append(g.Profiles, d.Inspect)
		o.Inspect = plus(o.Inspect, d.Inspect)
	case d.Log != "":
		o.Log = d.Log
	case d.Verify != "":
		o.Verify = plus(o.Verify, d.Verify)
	case d.Rate != "":
		if o.Rate == "" || d.RatePerSecond() < o.RatePerSecond() {
			o.Rate = d.Rate
		}
	case d.Assurance != "":
		o.Assurance = max(o.Assurance, d.Assurance) // L0 to L5 sort as texts
	}
	o.Whole = o.Whole || d.Whole
	o.Witness = o.Witness || d.Witness
	o.Provenance = o.Provenance || d.Provenance
	said := bocage.Duty{Duty: dutyText(d), By: by}
	if !slices.Contains(g.Duties, said) {
		g.Duties = append(g.Duties, said)
	}
}

// plus joins names as a Decision writes them: sorted, once each, by "+".
func plus(joined, name string) string {
	var names []string
	if joined != "" {
		names = strings.Split(joined, "+")
	}
	names = append(names, name)
	slices.Sort(names)
	return strings.Join(slices.Compact(names), "+")
}

func dutyText(d bocage.Duties) string {
	switch {
	case d.Inspect != "":
		return "inspect with " + d.Inspect
	case d.Log != "":
		return "keep in full detail"
	case d.Verify != "":
		return "speak " + d.Verify
	case d.Rate != "":
		return "open at most " + strings.TrimSuffix(d.Rate, "/s") + " new flows a second"
	case d.Whole:
		return "come in whole packets, not in IP fragments"
	case d.Witness:
		return "be reported by both ends"
	case d.Provenance:
		return "prove where it comes from"
	default:
		return "come from and go to identities vouched for at " + d.Assurance + " or better"
	}
}
