package bocage

import (
	"time"
)

// Level is how far a threat condition tightens policy. It never opens anything.
type Level string

// Levels, weakest first. Each includes those before it.
const (
	LevelWatch      Level = "watch"      // every flow of the workload is kept in full detail
	LevelDeepen     Level = "deepen"     // allowed flows of the workload are inspected
	LevelRestrict   Level = "restrict"   // refusals hold even where its scope only observes
	LevelQuarantine Level = "quarantine" // nothing from or to the workload passes
)

// Levels lists the levels, weakest first.
func Levels() []Level {
	return []Level{LevelWatch, LevelDeepen, LevelRestrict, LevelQuarantine}
}

// Includes reports whether the level does at least what the other does.
func (l Level) Includes(other Level) bool { return l.rank() >= other.rank() }

func (l Level) rank() int {
	for i, known := range Levels() {
		if l == known {
			return i
		}
	}
	return -1
}

// ThreatCondition is a present threat that policy takes into account. It names its evidence
// and always expires, so that a wrong one does no lasting harm.
type ThreatCondition struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       ThreatConditionSpec   `json:"spec"`
	Status     ThreatConditionStatus `json:"status,omitzero"`
}

// ThreatConditionSpec says whom it concerns, how much, why and until when.
// Exactly one of Workload, Zone and All is set.
type ThreatConditionSpec struct {
	Workload string    `json:"workload,omitempty"` // namespace/name
	Zone     string    `json:"zone,omitempty"`     // every workload on the Zone's hosts
	All      bool      `json:"all,omitempty"`      // every workload
	Level    Level     `json:"level"`
	Reason   string    `json:"reason"`
	Expires  time.Time `json:"expires"`
	// Profile is the InspectionProfile of LevelDeepen and above.
	Profile string `json:"profile,omitempty"`
	// Incident is the name of the Incident that it follows from, if any.
	Incident string `json:"incident,omitempty"`
}

// ThreatConditionStatus is what the system says of it.
type ThreatConditionStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
}

// Validate implements Resource.
func (t *ThreatCondition) Validate() Faults {
	faults := validateMeta(&t.ObjectMeta, false)
	concerned := 0
	for _, set := range []bool{t.Spec.Workload != "", t.Spec.Zone != "", t.Spec.All} {
		if set {
			concerned++
		}
	}
	switch {
	case concerned == 0:
		faults.Add("spec.workload", "is missing: name a workload as namespace/name, a zone, or set all")
	case concerned > 1:
		faults.Add("spec", "workload, zone and all exclude each other: use one condition for each")
	case t.Spec.Workload != "":
		faults = append(faults, validateWorkloadName(t.Spec.Workload)...)
	case t.Spec.Zone != "" && !isDNSSubdomain(t.Spec.Zone):
		faults.Add("spec.zone", "%q is not the name of a Zone", t.Spec.Zone)
	}
	if t.Spec.Level == LevelQuarantine && t.Spec.Workload == "" {
		faults.Add("spec.level", "only one workload at a time is quarantined: name it, or use restrict")
	}
	if t.Spec.Level.rank() < 0 {
		faults.Add("spec.level", "%q is not one of %v", t.Spec.Level, Levels())
	}
	if t.Spec.Expires.IsZero() {
		faults.Add("spec.expires", "is missing: a threat condition always expires")
	}
	if t.Spec.Profile != "" && !isDNSSubdomain(t.Spec.Profile) {
		faults.Add("spec.profile", "%q is not the name of an InspectionProfile", t.Spec.Profile)
	}
	return faults
}

func validateWorkloadName(name string) Faults {
	var faults Faults
	if !IsWorkloadName(name) {
		faults.Add("spec.workload", "%q is not namespace/name of a workload", name)
	}
	return faults
}

// Quarantine is a person's decision to cut a workload off.
type Quarantine struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       QuarantineSpec   `json:"spec"`
	Status     QuarantineStatus `json:"status,omitzero"`
}

// QuarantineSpec says whom, why and until when.
type QuarantineSpec struct {
	Workload string `json:"workload"` // namespace/name
	Reason   string `json:"reason,omitempty"`
	// Until ends it; zero means until it is deleted.
	Until time.Time `json:"until,omitzero"`
}

// QuarantineStatus is what the system says of it.
type QuarantineStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
}

// Validate implements Resource.
func (q *Quarantine) Validate() Faults {
	return append(validateMeta(&q.ObjectMeta, false), validateWorkloadName(q.Spec.Workload)...)
}
