package bocage

import "time"

// ObjectEventAPIVersion is the group and version of Event.
const ObjectEventAPIVersion = "v1"

// ObjectEvent is Kubernetes' Event: something that happened to an object, in
// words, for people. It is served as kind Event and forgotten after a while.
type ObjectEvent struct {
	TypeMeta       `json:",inline"`
	ObjectMeta     `json:"metadata"`
	InvolvedObject ObjectReference `json:"involvedObject"`
	// Reason is one CamelCase word.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// Weight is Normal or Warning.
	Weight         string      `json:"type"`
	Source         EventSource `json:"source"`
	FirstTimestamp time.Time   `json:"firstTimestamp"`
	LastTimestamp  time.Time   `json:"lastTimestamp"`
	Count          int32       `json:"count"`
	// ReportingComponent is the room that says it.
	ReportingComponent string `json:"reportingComponent"`
	ReportingInstance  string `json:"reportingInstance"`
}

// ObjectReference names an object.
type ObjectReference struct {
	APIVersion      string `json:"apiVersion,omitempty"`
	Kind            string `json:"kind"`
	Namespace       string `json:"namespace,omitempty"`
	Name            string `json:"name"`
	UID             string `json:"uid,omitempty"`
	ResourceVersion string `json:"resourceVersion,omitempty"`
	FieldPath       string `json:"fieldPath,omitempty"`
}

// EventSource is who says it.
type EventSource struct {
	Component string `json:"component,omitempty"`
	Host      string `json:"host,omitempty"`
}

// Validate implements Resource.
func (e *ObjectEvent) Validate() Faults { return validateMeta(&e.ObjectMeta, true) }
