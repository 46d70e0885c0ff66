package compile

import (
	"math/bits"
	"net/netip"

	"bocage.dev/bocage"
)

// kinds is a set of kinds of declaration.
type kinds uint32

const (
	kindApplication kinds = 1 << iota
	kindGuardrail
	kindScope
	kindProfile
	kindDecoy
	kindQuarantine
	kindThreatCondition
	kindException
	kindResponse
	kindAddressGroup
	kindZone
	kindNamespace
	kindNetworkPolicy
	kindClusterNetworkPolicy
	kindHost
	kindWorkload
)

const kindCount = 16

var kindNames = [kindCount]string{"Application", "Guardrail", "Scope", "InspectionProfile", "Decoy", "Quarantine", "ThreatCondition",
	"Exception", "Response", "AddressGroup", "Zone", "Namespace", "NetworkPolicy", "ClusterNetworkPolicy", "Host", "Workload"}

// index is the place of a single kind.
func (k kinds) index() int { return bits.TrailingZeros32(uint32(k)) }

func (k kinds) String() string { return kindNames[k.index()] }

// change is what is not as it was in the compilation before.
type change struct {
	first bool // there was none before
	kinds kinds

	applicationsGone, applicationsCome []*bocage.Application // a changed one is in both
	spoken                             []*application        // that came
	neighbours                         []string              // Applications whose consumers are to speak again
	used                               []use                 // by Applications that are gone

	// Subjects that nobody is left in, that are new, and that have other members.
	gone, come, altered []int32
	goneKeys            []string
	regrouped           map[int32]bocage.Group // subjects that stayed and took another key, with the groups that they had
	left                []*bocage.Workload     // workloads that are not where they were, as they were
	moved               []int32                // workloads that are in other subjects or came, by place
	renumbered          bool                   // subjects that stayed have other groups

	subjects bool           // some subject is gone, new or has other members
	prefixes []netip.Prefix // that are named and were not, or are no longer
	offers   bool           // somebody offers other classes of data
	touched  bool           // other subjects are refused something automatically
}

func (d *change) of(kinds ...kinds) bool {
	if d.first {
		return true
	}
	for _, k := range kinds {
		if d.kinds&k != 0 {
			return true
		}
	}
	return false
}

// others reports whether anything but Applications changed.
func (d *change) others() bool { return d.first || d.subjects || d.kinds&^kindApplication != 0 }

// subjectsTouched lists all subjects that are not as they were.
func (d *change) subjectsTouched() []int32 {
	out := make([]int32, 0, len(d.gone)+len(d.come)+len(d.altered))
	return append(append(append(out, d.gone...), d.come...), d.altered...)
}
