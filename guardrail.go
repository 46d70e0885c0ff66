package bocage

import "fmt"

// Guardrail is a corporate rule over all applications: what must never be
// reachable, what an allowed flow owes, and what the platform grants to all.
type Guardrail struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       GuardrailSpec   `json:"spec"`
	Status     GuardrailStatus `json:"status,omitzero"`
}

// GuardrailSpec is the declaration. Match narrows Never and Require to the cells
// it covers; Grant stands by itself.
type GuardrailSpec struct {
	Description string    `json:"description,omitempty"`
	Match       CellMatch `json:"match,omitzero"`
	// Never refuses every matching cell; no contract can open it. Each entry is
	// intersected with Match.
	Never []CellMatch `json:"never,omitempty"`
	// Require adds duties to every allowed cell in Match.
	Require *Duties `json:"require,omitempty"`
	// Grant allows cells without any application's contract.
	Grant []CellMatch `json:"grant,omitempty"`
}

// CellMatch picks cells: who, to whom, over what. Empty parts match everything.
type CellMatch struct {
	From Side `json:"from,omitzero"`
	To   Side `json:"to,omitzero"`
	// Ports lists destination ports; none means every protocol and port.
	Ports []PortMatch `json:"ports,omitempty"`
}

// PortMatch is a protocol with a range of ports.
type PortMatch struct {
	Port     uint16 `json:"port,omitempty"`
	EndPort  uint16 `json:"endPort,omitempty"`
	Protocol string `json:"protocol,omitempty"`
}

// Duties are what an allowed flow owes. They are joined and never removed by a
// lower author.
type Duties struct {
	// Inspect names the InspectionProfile that the flow is steered through.
	Inspect string `json:"inspect,omitempty"`
	// Log is "full" to keep each flow in full detail.
	Log string `json:"log,omitempty"`
}

// GuardrailStatus is what the system says of it.
type GuardrailStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
}

// Validate implements Resource.
func (g *Guardrail) Validate() Faults {
	faults := validateMeta(&g.ObjectMeta, false)
	faults = append(faults, g.Spec.Match.validate().Under("spec.match")...)
	for i, m := range g.Spec.Never {
		faults = append(faults, m.validate().Under(fmt.Sprintf("spec.never[%d]", i))...)
	}
	for i, m := range g.Spec.Grant {
		at := fmt.Sprintf("spec.grant[%d]", i)
		faults = append(faults, m.validate().Under(at)...)
	}
	if r := g.Spec.Require; r != nil {
		if r.Log != "" && r.Log != "full" {
			faults.Add("spec.require.log", "%q is not \"full\"", r.Log)
		}
		if r.Inspect == "" && r.Log == "" {
			faults.Add("spec.require", "requires nothing: name inspect or log")
		}
		if r.Inspect != "" && !dnsSubdomain.MatchString(r.Inspect) {
			faults.Add("spec.require.inspect", "%q is not the name of an InspectionProfile", r.Inspect)
		}
	}
	if len(g.Spec.Never) == 0 && g.Spec.Require == nil && len(g.Spec.Grant) == 0 {
		faults.Add("spec", "declares nothing: use never, require or grant")
	}
	return faults
}

func (m CellMatch) validate() Faults {
	faults := append(m.From.Validate().Under("from"), m.To.Validate().Under("to")...)
	if len(m.From.Data) > 0 {
		faults.Add("from.data", "data classes belong to offered interfaces: put it under to")
	}
	for i, p := range m.Ports {
		faults = append(faults, validatePorts(p.Port, p.EndPort, p.Protocol).Under(fmt.Sprintf("ports[%d]", i))...)
	}
	return faults
}
