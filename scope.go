package bocage

import (
	"fmt"
	"strings"
)

// Scope says where refusals are enforced and where they are only reported. A
// workload that no scope enforces is observed. Where several scopes pick a
// workload, one that enforces is enough.
type Scope struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       ScopeSpec   `json:"spec"`
	Status     ScopeStatus `json:"status,omitzero"`
}

// ScopeSpec is the declaration.
type ScopeSpec struct {
	Namespaces []string `json:"namespaces,omitempty"` // none: every namespace
	Workload   Selector `json:"workload,omitzero"`
	Mode       string   `json:"mode"` // observe or enforce
	// Disposition of what is refused to the scope's workloads because nothing
	// declares it: drop (the default) or reject.
	Disposition string `json:"disposition,omitempty"`
}

// Modes of a Scope.
const (
	ModeObserve = "observe"
	ModeEnforce = "enforce"
)

// ScopeStatus is what the system says of it.
type ScopeStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
	// Approval says what a second person has to agree to, or did, where two decide
	// on what takes something out of guardrails' reach. None means that nobody has to.
	Approval *Approval `json:"approval,omitempty"`
	// Approved is the declaration that stays in force while a newer one waits.
	Approved *ScopeSpec `json:"approved,omitempty"`
}

// Validate implements Resource.
func (s *Scope) Validate() Faults {
	faults := validateMeta(&s.ObjectMeta, false)
	faults = append(faults, Side{Namespaces: s.Spec.Namespaces}.Validate().Under("spec")...)
	faults = append(faults, s.Spec.Workload.Validate().Under("spec.workload")...)
	if s.Spec.Mode != ModeObserve && s.Spec.Mode != ModeEnforce {
		faults.Add("spec.mode", "%q is neither observe nor enforce", s.Spec.Mode)
	}
	if d := s.Spec.Disposition; d != "" && d != DispositionDrop && d != DispositionReject {
		faults.Add("spec.disposition", "%q is neither drop nor reject", d)
	}
	return faults
}

// InspectionProfile is a set of signatures for one kind of traffic, with the
// outcome while the engine is down.
type InspectionProfile struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       InspectionProfileSpec   `json:"spec"`
	Status     InspectionProfileStatus `json:"status,omitzero"`
}

// InspectionProfileSpec is the declaration.
type InspectionProfileSpec struct {
	// Signatures are rules in Suricata's language, one a line. Those with the
	// action drop or reject block, those with alert report.
	Signatures string `json:"signatures"`
	// FailMode is closed (the default: steered flows are refused while the
	// engine is down) or open (they pass, and every one is reported).
	FailMode string `json:"failMode,omitempty"`
}

// InspectionProfileStatus is what the system says of it.
type InspectionProfileStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
	// Approval says what a second person has to agree to, or did, where two decide
	// on what takes something out of guardrails' reach. None means that nobody has to.
	Approval *Approval `json:"approval,omitempty"`
	// Approved is the declaration that stays in force while a newer one waits.
	Approved *InspectionProfileSpec `json:"approved,omitempty"`
}

// Validate implements Resource. The engine itself checks the signatures.
func (p *InspectionProfile) Validate() Faults {
	faults := validateMeta(&p.ObjectMeta, false)
	if p.Spec.Signatures == "" {
		faults.Add("spec.signatures", "is empty: a profile without signatures inspects nothing")
	}
	if m := p.Spec.FailMode; m != "" && m != "open" && m != "closed" {
		faults.Add("spec.failMode", "%q is neither open nor closed", m)
	}
	return faults
}

// MayRefuse reports whether steering a flow through the profile may cost it packets:
// the engine may be down, or a signature may block what it matches.
func (p *InspectionProfile) MayRefuse() bool {
	return p.Spec.FailMode != "open" || signaturesMayBlock(p.Spec.Signatures)
}

// signaturesMayBlock reports whether there is a signature that does more than report.
func signaturesMayBlock(signatures string) bool {
	for line := range strings.Lines(signatures) {
		action, _, _ := strings.Cut(strings.Join(strings.Fields(line), " "), " ")
		if action != "" && !strings.HasPrefix(action, "#") && action != "alert" {
			return true
		}
	}
	return false
}

// Decoy offers a false target to flows that policy refuses: the source meets it
// at the address that it tried to reach.
type Decoy struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       DecoySpec   `json:"spec"`
	Status     DecoyStatus `json:"status,omitzero"`
}

// DecoySpec is the declaration.
type DecoySpec struct {
	Protocol string `json:"protocol"` // ssh
	Port     uint16 `json:"port"`
	// For picks the workloads whose refused connections on Port meet the decoy.
	For Side `json:"for,omitzero"`
	// From picks the sources that are diverted; approved scanners are left out
	// by a selector here.
	From Side `json:"from,omitzero"`
	// Banner is the identification that the decoy wears, as the real service
	// would send it.
	Banner string `json:"banner,omitempty"`
}

// DecoyStatus is what the system says of it.
type DecoyStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
}

// Validate implements Resource.
func (d *Decoy) Validate() Faults {
	faults := validateMeta(&d.ObjectMeta, false)
	if d.Spec.Protocol != "ssh" {
		faults.Add("spec.protocol", "%q is not a decoy that exists: ssh", d.Spec.Protocol)
	}
	if d.Spec.Port == 0 {
		faults.Add("spec.port", "needs a port from 1 to 65535")
	}
	faults = append(faults, d.Spec.For.Validate().Under("spec.for")...)
	faults = append(faults, d.Spec.From.Validate().Under("spec.from")...)
	for i, side := range []Side{d.Spec.For, d.Spec.From} {
		if len(side.Data) > 0 || (i == 0 && side.Outside()) {
			faults.Add(fmt.Sprintf("spec.%s", []string{"for", "from"}[i]), "picks workloads by namespace and label only")
		}
	}
	if len(d.Spec.Banner) > 253 {
		faults.Add("spec.banner", "is longer than the 253 characters of RFC 4253 section 4.2")
	}
	return faults
}
