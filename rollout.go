package bocage

import (
	"fmt"
	"time"
)

// Rollout says how a new generation comes into force. There is one, named
// "default"; without it a generation is in force everywhere at once. What only
// tightens (a threat condition, a quarantine) never waits for it.
type Rollout struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       RolloutSpec   `json:"spec"`
	Status     RolloutStatus `json:"status,omitzero"`
}

// RolloutName is the name of the one Rollout.
const RolloutName = "default"

// RolloutSpec is the declaration. Times are seconds; zero leaves a stage out.
type RolloutSpec struct {
	// ShadowSeconds is how long a candidate is evaluated beside the generation
	// in force, on every new flow, before it decides anything.
	ShadowSeconds int64 `json:"shadowSeconds,omitempty"`
	// Canary are the hosts that get it first.
	Canary []string `json:"canary,omitempty"`
	// CanarySeconds is how long they have it alone.
	CanarySeconds int64 `json:"canarySeconds,omitempty"`
	// ConfirmSeconds is how long a person has to confirm it once it is in force
	// everywhere. Without, agents go back by themselves.
	ConfirmSeconds int64 `json:"confirmSeconds,omitempty"`
	// MostNewlyRefused ends a rollout in shadow or canary when more kinds of flow
	// that were allowed and answered are refused by the candidate. Zero: one is
	// too many; -1: any number is fine.
	MostNewlyRefused int64 `json:"mostNewlyRefused,omitempty"`
}

// Stages of a generation.
const (
	StageShadow     = "Shadow"
	StageCanary     = "Canary"
	StageActive     = "Active"
	StageConfirming = "Confirming" // in force, and going back unless confirmed
	StageRolledBack = "RolledBack"
	StageEnded      = "Ended" // its rollout ended by itself before it was in force everywhere
	StageBlocked    = "Blocked"
	StageSuperseded = "Superseded"
)

// RolloutStatus is where the rollout stands.
type RolloutStatus struct {
	// Stage of the newest generation.
	Stage string `json:"stage,omitempty"`
	// Generation is the newest, Active the one in force.
	Generation uint64 `json:"generation,omitempty"`
	Active     uint64 `json:"active,omitempty"`
	// Deadline ends the stage.
	Deadline time.Time `json:"deadline,omitzero"`
	// NewlyRefused counts the kinds of flow that the candidate would refuse.
	NewlyRefused int64       `json:"newlyRefused,omitempty"`
	Conditions   []Condition `json:"conditions,omitempty"`
}

// Validate implements Resource.
func (r *Rollout) Validate() Faults {
	const longest = 7 * 24 * 3600
	faults := validateMeta(&r.ObjectMeta, false)
	if r.Name != RolloutName {
		faults.Add("metadata.name", "%q is not %q, the name of the one Rollout", r.Name, RolloutName)
	}
	for _, f := range []struct {
		field   string
		seconds int64
	}{{"shadowSeconds", r.Spec.ShadowSeconds}, {"canarySeconds", r.Spec.CanarySeconds}, {"confirmSeconds", r.Spec.ConfirmSeconds}} {
		if f.seconds < 0 || f.seconds > longest {
			faults.Add("spec."+f.field, "%d is not between 0 and %d seconds", f.seconds, longest)
		}
	}
	if r.Spec.CanarySeconds > 0 && len(r.Spec.Canary) == 0 {
		faults.Add("spec.canary", "names no host, and spec.canarySeconds asks for some")
	}
	for i, host := range r.Spec.Canary {
		if !isDNSSubdomain(host) {
			faults.Add(fmt.Sprintf("spec.canary[%d]", i), "%q is not a host's name", host)
		}
	}
	if r.Spec.MostNewlyRefused < -1 {
		faults.Add("spec.mostNewlyRefused", "is below -1")
	}
	return faults
}
