package compile

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// This file tells authors what in their declarations cannot mean what they may
// think, whoever joins: names that nobody has, selectors that contradict
// themselves, parts that exclude each other, duties that are only recorded.

// checkZones tells zones which of their hosts stand in another.
func (c *compiler) checkZones() {
	for _, z := range c.in.zones {
		for i, host := range z.Spec.Hosts {
			if first := c.pop.zones[host]; first != z.Name {
				c.findings.reject(Ref("Zone", z, field("spec.hosts", i)), HostTaken, "%s stands in Zone %s, which is the first by name of those that list it", host, first)
			}
		}
	}
}

// checkMatch looks at both ends of a match.
func (c *compiler) checkMatch(kind string, o bocage.Resource, at string, m *bocage.CellMatch) {
	c.checkSide(kind, o, at+".from", &m.From)
	c.checkSide(kind, o, at+".to", &m.To)
	ref := Ref(kind, o, at)
	if at == "spec.match" {
		ref.Field += ".to.data"
	}
	c.noteUnknownData(ref, m.To.Data)
}

func (c *compiler) checkSide(kind string, o bocage.Resource, at string, s *bocage.Side) {
	for i, name := range s.AddressGroups {
		if c.pop.addresses[name] == nil {
			c.findings.reject(Ref(kind, o, field(at+".addressGroups", i)), UnknownAddressGroup,
				"there is no AddressGroup %s: it names nobody until it is declared", name)
		}
	}
	if s.Workload != nil {
		c.checkSelector(Ref(kind, o, at+".workload"), s.Namespaces, s.Workload)
	}
}

// checkSelector notes that a selector picks nobody, today or ever.
func (c *compiler) checkSelector(ref bocage.Ref, namespaces []string, s *bocage.Selector) {
	if why := nobody(namespaces, s); why != "" {
		c.findings.note(ref, NothingMatches, "it can never match, whoever joins: %s", why)
		return
	}
	for _, zone := range conjunction(s)[bocage.LabelZone].in {
		if !slices.ContainsFunc(c.in.zones, func(z *bocage.Zone) bool { return z.Name == zone }) {
			c.findings.note(ref, UnknownZone, "there is no Zone %s: declare it with the hosts that stand in it", zone)
		}
	}
}

func (c *compiler) noteUnknownData(ref bocage.Ref, classes []string) {
	for _, class := range classes {
		if !c.classes[class] {
			c.findings.note(ref, NothingMatches, "no Application provides an interface with data class %q today", class)
		}
	}
}

// noteDuties tells the author of duties which of them cannot be kept, and which
// are only written down.
func (c *compiler) noteDuties(kind string, o bocage.Resource, at string, d *bocage.Duties) {
	if d == nil {
		return
	}
	if d.Inspect != "" && !c.hasProfile(d.Inspect) {
		c.findings.reject(Ref(kind, o, at+".inspect"), UnknownProfile,
			"there is no InspectionProfile %s: the flows that owe it are refused until there is", d.Inspect)
	}
	var recorded []string
	for _, duty := range []struct {
		owed bool
		text string
	}{{d.Witness, "witnesses"}, {d.Provenance, "provenance"}} {
		if duty.owed {
			recorded = append(recorded, duty.text)
		}
	}
	c.noteRecorded(Ref(kind, o, at), recorded)
}

func (c *compiler) noteRecorded(ref bocage.Ref, duties []string) {
	if len(duties) > 0 {
		c.findings.note(ref, DutyRecorded, "is recorded and explained; enforcement points do not enforce %s yet", listed(duties))
	}
}

// noteBabel tells the authors of duties to speak several protocols at once: the
// first bytes of a flow are of one at most, so such flows are let begin and refused
// as soon as they say anything.
func (c *compiler) noteBabel() {
	told := map[Finding]bool{}
	for _, i := range slices.Sorted(maps.Keys(c.decisions.babel)) {
		if !c.book.decisions.uses(i) {
			continue
		}
		d := c.decisions.list[i]
		var by []string
		var authors []bocage.Ref
		for _, r := range d.by {
			if strings.HasSuffix(r.Field, ".verify") || strings.HasSuffix(r.Field, ".appProtocol") {
				authors, by = append(authors, r), append(by, r.String())
			}
		}
		for _, author := range authors {
			f := Finding{author, NeverSpoken, fmt.Sprintf("flows would have to speak %s, each by itself: whatever they say is refused (%s)",
				strings.ReplaceAll(d.duties.Verify, "+", " and "), listed(by)), false}
			if !told[f] {
				told[f] = true
				c.findings = append(c.findings, f)
			}
		}
	}
}

// noteCarrier tells an owner of an interface whose protocol is not spoken over its
// transport.
func (c *compiler) noteCarrier(ref bocage.Ref, provide *bocage.Provide) {
	spoken := bocage.Duties{Verify: provide.AppProtocol}.Expects()
	carrier, _, err := bocage.Transport(provide.Port, provide.EndPort, provide.Protocol)
	if err == nil && provide.AppProtocol != "" && !slices.Contains(spoken.Carriers(), carrier) {
		c.findings.note(ref, NeverSpoken, "%s is not spoken over %s: whatever flows say there is refused", spoken, carrier)
	}
}

// asks is what selectors together ask about one label.
type asks struct {
	in             []string // the values that it may have, if some are named
	named          bool
	notIn          []string
	exists, absent bool
}

// conjunction gathers what selectors ask, label by label.
func conjunction(selectors ...*bocage.Selector) map[string]asks {
	out := map[string]asks{}
	in := func(key string, values []string) {
		a := out[key]
		if a.named {
			values = slices.DeleteFunc(slices.Clone(a.in), func(v string) bool { return !slices.Contains(values, v) })
		}
		a.in, a.named, a.exists = values, true, true
		out[key] = a
	}
	for _, s := range selectors {
		if s == nil {
			continue
		}
		for key, value := range s.MatchLabels {
			in(key, []string{value})
		}
		for _, r := range s.MatchExpressions {
			a := out[r.Key]
			switch r.Operator {
			case "In":
				in(r.Key, r.Values)
				continue
			case "NotIn":
				a.notIn = append(slices.Clip(a.notIn), r.Values...)
			case "Exists":
				a.exists = true
			case "DoesNotExist":
				a.absent = true
			}
			out[r.Key] = a
		}
	}
	return out
}

// nobody says why no workload of the namespaces (none: of any) can ever satisfy
// all the selectors; nothing if one could.
func nobody(namespaces []string, selectors ...*bocage.Selector) string {
	all := conjunction(selectors...)
	keys := make([]string, 0, len(all))
	for key := range all {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		a := all[key]
		always := inherent(key) && key != bocage.LabelZone
		left := slices.DeleteFunc(slices.Clone(a.in), func(v string) bool { return slices.Contains(a.notIn, v) })
		switch {
		case a.absent && always:
			return fmt.Sprintf("every workload has the label %s", key)
		case a.absent && a.exists:
			return fmt.Sprintf("the label %s would have to be there and not to be there", key)
		case a.named && len(a.in) == 0:
			return fmt.Sprintf("the label %s would need several values at once", key)
		case a.named && len(left) == 0:
			return fmt.Sprintf("every value of the label %s that is asked for is excluded too", key)
		case key == bocage.LabelNamespace && a.named && len(namespaces) > 0 &&
			!slices.ContainsFunc(left, func(ns string) bool { return slices.Contains(namespaces, ns) }):
			return fmt.Sprintf("the label %s is none of the namespaces %s", key, strings.Join(namespaces, ", "))
		case key == bocage.LabelNamespace && len(namespaces) > 0 &&
			!slices.ContainsFunc(namespaces, func(ns string) bool { return !slices.Contains(a.notIn, ns) }):
			return fmt.Sprintf("the label %s excludes the namespaces %s", key, strings.Join(namespaces, ", "))
		}
	}
	return ""
}

// apart says why two matches can never meet, whoever joins; nothing if they could.
func apart(a, b *bocage.CellMatch) string {
	if why := sidesApart(&a.From, &b.From); why != "" {
		return why
	}
	if why := sidesApart(&a.To, &b.To); why != "" {
		return why
	}
	if portMatches(a.Ports).meet(portMatches(b.Ports)).empty() {
		return "they name different ports"
	}
	return ""
}

func sidesApart(a, b *bocage.Side) string {
	inside := func(s *bocage.Side) bool { return len(s.Namespaces) > 0 || s.Workload != nil || len(s.Data) > 0 }
	switch {
	case a.Outside() && inside(b) || b.Outside() && inside(a):
		return "one names addresses outside, the other workloads"
	case a.Outside() && b.Outside():
		if len(a.AddressGroups)+len(b.AddressGroups) == 0 && !prefixesOverlap(a.External, b.External) {
			return "they name different addresses"
		}
		return ""
	}
	namespaces := slices.Concat(a.Namespaces, b.Namespaces)
	if len(a.Namespaces) > 0 && len(b.Namespaces) > 0 {
		namespaces = slices.DeleteFunc(slices.Clone(a.Namespaces), func(ns string) bool { return !slices.Contains(b.Namespaces, ns) })
		if len(namespaces) == 0 {
			return "they name different namespaces"
		}
	}
	if nobody(a.Namespaces, a.Workload) != "" || nobody(b.Namespaces, b.Workload) != "" {
		return "" // said of the one that contradicts itself
	}
	return nobody(namespaces, a.Workload, b.Workload)
}

func prefixesOverlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(x netip.Prefix) bool {
		return slices.ContainsFunc(b, func(y netip.Prefix) bool { return canonicalPrefix(x).Overlaps(canonicalPrefix(y)) })
	})
}
