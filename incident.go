package bocage

import "time"

// Evidence is a weighed fact. It is no alert by itself.
type Evidence struct {
	ID   string    `json:"id"` // derived from what it says, so that replicas agree
	Kind string    `json:"kind"`
	Time time.Time `json:"time"`
	// Technique is the ATT&CK id of the behaviour, such as T1046.
	Technique string   `json:"technique,omitempty"`
	Entities  []Entity `json:"entities"`
	// Weight is the base-10 logarithm of the likelihood ratio.
	Weight float64 `json:"weight"`
	// HalfLife is the time, in seconds, in which the weight halves.
	HalfLife float64 `json:"halfLifeSeconds"`
	// Decisive evidence makes an incident alone.
	Decisive bool   `json:"decisive,omitempty"`
	Text     string `json:"text"`
	// Records point at the events behind it: "source/boot/sequence/index".
	Records []string `json:"records,omitempty"`
	Count   int      `json:"count"` // how often it was seen
}

// Entity is who takes part in evidence, and how.
type Entity struct {
	Type string `json:"type"` // workload, address or host
	Name string `json:"name"` // namespace/name, the address, or the host of an agent
	Role string `json:"role"` // attacker or victim
}

// Incident is a case: evidence that belongs together, and what was done.
type Incident struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Status     IncidentStatus `json:"status,omitzero"`
}

// IncidentStatus is the case's content.
type IncidentStatus struct {
	Title    string     `json:"title"`
	Severity string     `json:"severity"` // low, medium, high, critical
	Phase    string     `json:"phase"`    // open, contained, closed
	First    time.Time  `json:"first"`
	Last     time.Time  `json:"last"`
	Score    float64    `json:"score"` // sum of decayed weights at Last
	Entities []Entity   `json:"entities"`
	Evidence []Evidence `json:"evidence"`
	// Techniques are the ATT&CK ids of the evidence, sorted.
	Techniques []string `json:"techniques,omitempty"`
	// ThreatConditions names those that followed.
	ThreatConditions []string `json:"threatConditions,omitempty"`
	// Notes say what automation held back, and why.
	Notes []string `json:"notes,omitempty"`
}

// Validate implements Resource.
func (i *Incident) Validate() Faults { return validateMeta(&i.ObjectMeta, false) }
