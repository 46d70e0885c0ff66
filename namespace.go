package bocage

// NamespaceAPIVersion is the group and version of Namespace.
const NamespaceAPIVersion = "v1"

// LabelNamespaceName is the label by which Kubernetes' namespace selectors name
// one namespace. Every namespace carries it.
const LabelNamespaceName = "kubernetes.io/metadata.name"

// Namespace gives a namespace labels. A namespace exists without being declared
// while something is declared in it.
type Namespace struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       NamespaceSpec   `json:"spec,omitzero"`
	Status     NamespaceStatus `json:"status,omitzero"`
}

// NamespaceSpec is Kubernetes' own; nothing in it counts here.
type NamespaceSpec struct {
	Finalizers []string `json:"finalizers,omitempty"`
}

// NamespaceStatus is what the system says of it.
type NamespaceStatus struct {
	Phase      string      `json:"phase,omitempty"`
	Conditions []Condition `json:"conditions,omitempty"`
}

// AllLabels returns the namespace's labels with the one that every namespace carries.
func (n *Namespace) AllLabels() map[string]string {
	labels := make(map[string]string, len(n.Labels)+1)
	for k, v := range n.Labels {
		labels[k] = v
	}
	labels[LabelNamespaceName] = n.Name
	return labels
}

// Validate implements Resource.
func (n *Namespace) Validate() Faults {
	faults := validateMeta(&n.ObjectMeta, false)
	if !isDNSLabel(n.Name) {
		faults.Add("metadata.name", "%q is not a lower-case DNS label of at most 63 characters", n.Name)
	}
	return faults
}
