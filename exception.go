package bocage

import "time"

// Exception lifts one guardrail from some cells for a limited time. The enforcement points
// end it themselves, even if every controller is down.
type Exception struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       ExceptionSpec   `json:"spec"`
	Status     ExceptionStatus `json:"status,omitzero"`
}

// ExceptionSpec is the declaration.
type ExceptionSpec struct {
	// Guardrail is the name of the one that it is an exception to.
	Guardrail string `json:"guardrail"`
	// Match picks the cells; it must pick something narrower than everything.
	Match CellMatch `json:"match"`
	// From is when it begins; zero is when it was created.
	From time.Time `json:"from,omitzero"`
	// Until is when it ends.
	Until  time.Time `json:"until"`
	Reason string    `json:"reason,omitempty"`
	// Ticket names the record of the decision elsewhere.
	Ticket string `json:"ticket,omitempty"`
}

// ExceptionStatus is what the system says of it.
type ExceptionStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
	// Approval says whether the guardrail's owner agreed. None means that nobody
	// has to.
	Approval *Approval `json:"approval,omitempty"`
	Usage    []Usage   `json:"usage,omitempty"`
}

// Begins is when the exception begins: at From, or when it was created. Zero is
// the beginning of time.
func (e *Exception) Begins() time.Time {
	if e.Spec.From.IsZero() && e.CreationTimestamp != nil {
		return *e.CreationTimestamp
	}
	return e.Spec.From
}

// Validate implements Resource. Whether the guardrail admits it is policy's business.
func (e *Exception) Validate() Faults {
	faults := validateMeta(&e.ObjectMeta, false)
	if !isDNSSubdomain(e.Spec.Guardrail) {
		faults.Add("spec.guardrail", "%q is not the name of a Guardrail", e.Spec.Guardrail)
	}
	faults = append(faults, e.Spec.Match.validate().Under("spec.match")...)
	if e.Spec.Match.everything() {
		faults.Add("spec.match", "picks everything: an exception is narrow, so name from, to or ports")
	}
	switch {
	case e.Spec.Until.IsZero():
		faults.Add("spec.until", "is missing: an exception always ends")
	case !e.Spec.From.IsZero() && !e.Spec.From.Before(e.Spec.Until):
		faults.Add("spec.until", "%s is not after spec.from", e.Spec.Until.Format(time.RFC3339))
	}
	return faults
}

// Usage says how much of a declaration is used.
type Usage struct {
	// Field is the path of the part that is meant, such as spec.provides[0].
	Field string `json:"field"`
	// Hits counts the flows that it decided.
	Hits      int64     `json:"hits"`
	FirstSeen time.Time `json:"firstSeen,omitzero"`
	LastSeen  time.Time `json:"lastSeen,omitzero"`
}
