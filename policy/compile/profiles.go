package compile

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// profileNumbers are 1 to 4094: they travel as VLAN ids.
const profileNumbers = 4094

func (c *compiler) hasProfile(name string) bool {
	i, found := slices.BinarySearchFunc(c.in.profiles, name, func(p *bocage.InspectionProfile, name string) int { return cmp.Compare(p.Name, name) })
	return found && i < profileNumbers
}

// profileMayRefuse reports whether to be inspected so may cost a flow packets, as it
// does where there is no such profile.
func (c *compiler) profileMayRefuse(name string) bool {
	i, found := slices.BinarySearchFunc(c.in.profiles, name, func(p *bocage.InspectionProfile, name string) int { return cmp.Compare(p.Name, name) })
	return !found || i >= profileNumbers || c.in.profiles[i].MayRefuse()
}

// profileName names what inspects with all the profiles. A plus sign is in no
// object's name.
func profileName(names []string) string { return strings.Join(names, "+") }

// ProfileNames takes a combined profile's name apart.
func ProfileNames(name string) []string {
	if name == "" {
		return nil
	}
	return strings.Split(name, "+")
}

// numberProfiles gives the profiles in use their numbers: combined has the names
// of those that decisions inspect with. Where a cell owes
// several, one profile joins their signatures, so that none of the duties is lost.
func (c *compiler) numberProfiles(combined map[string]int32) ([]bocage.Profile, map[string]uint16) {
	var list []bocage.Profile
	numbers := map[string]uint16{}
	taken := map[uint16]bool{}
	assign := func(name string) bool {
		if len(taken) == profileNumbers {
			return false
		}
		n := uint16(hash32(name)%profileNumbers) + 1
		for taken[n] {
			n = n%profileNumbers + 1
		}
		numbers[name], taken[n] = n, true
		return true
	}
	byName := map[string]*bocage.InspectionProfile{}
	for _, p := range c.in.profiles {
		byName[p.Name] = p
		if !assign(p.Name) {
			c.findings.reject(Ref("InspectionProfile", p, ""), TooMany, "there are %d profiles before it, which is all that can be told apart on the wire", profileNumbers)
		}
	}
	names := slices.Collect(maps.Keys(combined))
	slices.Sort(names)
	for _, name := range names {
		parts := ProfileNames(name)
		if len(parts) > 1 && !assign(name) {
			// No number is left for the combination: the first profile's stands
			// in, so the flows are still steered and still inspected.
			c.findings.reject(Ref("InspectionProfile", byName[parts[1]], ""), TooMany,
				"flows that owe %s are inspected with %s only: no number is left for the combination", quoteList(parts), parts[0])
			numbers[name] = numbers[parts[0]]
			name, parts = parts[0], parts[:1]
			if slices.Contains(names, name) {
				continue
			}
		}
		list = append(list, c.joined(numbers[name], name, parts, byName))
	}
	slices.SortFunc(list, func(a, b bocage.Profile) int { return cmp.Compare(a.Number, b.Number) })
	return slices.CompactFunc(list, func(a, b bocage.Profile) bool { return a.Number == b.Number }), numbers
}

// joined makes one profile of several: every signature once, and it fails closed
// if one of them does.
func (c *compiler) joined(number uint16, name string, parts []string, byName map[string]*bocage.InspectionProfile) bocage.Profile {
	out := bocage.Profile{Number: number, Name: name, FailOpen: true}
	if len(parts) == 1 {
		p := byName[parts[0]]
		out.FailOpen, out.Signatures = p.Spec.FailMode == "open", p.Spec.Signatures
		return out
	}
	type signature struct{ line, profile string }
	bySID := map[string]signature{}
	var lines []string
	for _, part := range parts {
		p := byName[part]
		out.FailOpen = out.FailOpen && p.Spec.FailMode == "open"
		for line := range strings.Lines(p.Spec.Signatures) {
			line = strings.TrimSpace(line)
			if line == "" || strings.HasPrefix(line, "#") || slices.Contains(lines, line) {
				continue
			}
			if m := signatureID.FindStringSubmatch(line); m != nil {
				if first, taken := bySID[m[1]]; taken && first.profile != part {
					c.findings.reject(Ref("InspectionProfile", p, "spec.signatures"), SignatureTwice,
						"sid %s is another signature in InspectionProfile %s, and some flows owe both profiles: give it a number of its own; until then the one of %s counts there",
						m[1], first.profile, first.profile)
					continue
				}
				bySID[m[1]] = signature{line, part}
			}
			lines = append(lines, line)
		}
	}
	out.Signatures = strings.Join(lines, "\n") + "\n"
	return out
}

// signatureID finds a signature's number in Suricata's language.
var signatureID = regexp.MustCompile(`[(;]\s*sid\s*:\s*([0-9]+)\s*;`)
