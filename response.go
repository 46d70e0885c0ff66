package bocage

import "fmt"

// Response declares what a threat condition tightens beyond what its level does by itself.
// It never refuses what a guardrail protects.
type Response struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       ResponseSpec   `json:"spec"`
	Status     ResponseStatus `json:"status,omitzero"`
}

// ResponseSpec is the declaration.
type ResponseSpec struct {
	Description string       `json:"description,omitempty"`
	When        ResponseWhen `json:"when"`
	Then        ResponseThen `json:"then"`
}

// ResponseWhen selects the threat conditions that the Response applies to. All its parts
// must match.
type ResponseWhen struct {
	// Level is the lowest level that it applies to.
	Level Level `json:"level"`
	// Workloads restricts it to conditions about such workloads. Empty is all.
	Workloads Side `json:"workloads,omitzero"`
}

// ResponseThen is what is tightened for the workloads concerned.
type ResponseThen struct {
	// Require adds duties to every flow that is allowed from or to them.
	Require *Duties `json:"require,omitempty"`
	// RefuseFrom refuses flows from them to such destinations.
	RefuseFrom []ResponseCell `json:"refuseFrom,omitempty"`
	// RefuseTo refuses flows from such sources to them.
	RefuseTo []ResponseCell `json:"refuseTo,omitempty"`
	// Disposition of refused flows from and to them: drop, reject or decoy.
	Disposition string `json:"disposition,omitempty"`
}

// ResponseCell is the other end and the ports; empty parts are all of them.
type ResponseCell struct {
	Peer  Side        `json:"peer,omitzero"`
	Ports []PortMatch `json:"ports,omitempty"`
}

// ResponseStatus is what the system says of it.
type ResponseStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
}

// Validate implements Resource.
func (r *Response) Validate() Faults {
	faults := validateMeta(&r.ObjectMeta, false)
	if r.Spec.When.Level.rank() < 0 {
		faults.Add("spec.when.level", "%q is not one of %v", r.Spec.When.Level, Levels())
	}
	faults = append(faults, r.Spec.When.Workloads.Validate().Under("spec.when.workloads")...)
	if w := r.Spec.When.Workloads; len(w.External) > 0 || len(w.AddressGroups) > 0 || len(w.Data) > 0 {
		faults.Add("spec.when.workloads", "picks workloads by namespace and label only")
	}
	then := r.Spec.Then
	if then.Require == nil && len(then.RefuseFrom) == 0 && len(then.RefuseTo) == 0 && then.Disposition == "" {
		faults.Add("spec.then", "tightens nothing: use require, refuseFrom, refuseTo or disposition")
	}
	if then.Require != nil {
		faults = append(faults, then.Require.validate().Under("spec.then.require")...)
	}
	for _, list := range []struct {
		field string
		cells []ResponseCell
	}{{"refuseFrom", then.RefuseFrom}, {"refuseTo", then.RefuseTo}} {
		for i, cell := range list.cells {
			at := fmt.Sprintf("spec.then.%s[%d]", list.field, i)
			if list.field == "refuseTo" && len(cell.Peer.Data) > 0 {
				faults.Add(at+".peer.data", "data classes belong to offered interfaces, and this is where flows come from")
			}
			faults = append(faults, cell.Peer.Validate().Under(at+".peer")...)
			for j, p := range cell.Ports {
				faults = append(faults, validatePorts(p.Port, p.EndPort, p.Protocol).Under(fmt.Sprintf("%s.ports[%d]", at, j))...)
			}
		}
	}
	return append(faults, validateDisposition(then.Disposition).Under("spec.then.disposition")...)
}

// Dispositions of a refused cell, weakest first. Where several are asked for,
// the last counts.
const (
	DispositionDrop   = "drop"   // in silence
	DispositionReject = "reject" // with a TCP RST or an ICMP unreachable
	DispositionDecoy  = "decoy"  // the source meets a decoy where one stands
)

func validateDisposition(d string) Faults {
	var faults Faults
	switch d {
	case "", DispositionDrop, DispositionReject, DispositionDecoy:
	default:
		faults.Add("", "%q is not drop, reject or decoy", d)
	}
	return faults
}
