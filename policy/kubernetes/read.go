package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"bocage.dev/bocage"
)

// Pod is what policy needs to know of a Pod.
type Pod struct {
	// Workload is the Pod as a workload: its labels, addresses, named ports and
	// the node that it runs on, as far as they are known.
	*bocage.Workload
	// HostNetwork says that the Pod has its node's addresses. No policy selects
	// such a Pod and no peer means it by label: to policy it is its node, so it
	// must not be entered as a workload.
	HostNetwork bool
	// Ended says that the Pod has succeeded or failed: nothing is there any more.
	Ended bool
}

type podObject struct {
	Kind     string     `json:"kind"`
	Metadata objectMeta `json:"metadata"`
	Spec     struct {
		NodeName       string      `json:"nodeName"`
		HostNetwork    bool        `json:"hostNetwork"`
		Containers     []container `json:"containers"`
		InitContainers []container `json:"initContainers"`
	} `json:"spec"`
	Status struct {
		Phase  string `json:"phase"`
		PodIP  string `json:"podIP"`
		PodIPs []struct {
			IP string `json:"ip"`
		} `json:"podIPs"`
	} `json:"status"`
}

type objectMeta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// of returns the part of the metadata that counts here.
func (m objectMeta) of() bocage.ObjectMeta {
	meta := bocage.ObjectMeta{Name: m.Name, Namespace: m.Namespace, Labels: m.Labels}
	if source := m.Annotations[bocage.SourceAnnotation]; source != "" {
		meta.Annotations = map[string]string{bocage.SourceAnnotation: source}
	}
	return meta
}

type container struct {
	RestartPolicy string          `json:"restartPolicy"`
	Ports         []containerPort `json:"ports"`
}

type containerPort struct {
	Name string `json:"name"`
	// ContainerPort is what was written, number or not.
	ContainerPort json.RawMessage `json:"containerPort"`
	Protocol      string          `json:"protocol"`
}

// number reads the port; what is wrong with it is said for people.
func (p containerPort) number() (port uint16, wrong string) {
	text := string(p.ContainerPort)
	if text == "" || text == "null" {
		return 0, "is missing: write the number of the port, 1 to 65535"
	}
	var quoted string
	if json.Unmarshal(p.ContainerPort, &quoted) == nil {
		if _, err := strconv.Atoi(quoted); err == nil {
			return 0, fmt.Sprintf("is text where a number is needed: write %s without quotes", quoted)
		}
		return 0, fmt.Sprintf("%q is text where a number is needed: a port's name belongs under name", quoted)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Sprintf("%s is not a port: 1 to 65535", text)
	}
	return uint16(n), ""
}

// ReadPod reads the JSON of a Pod. It asks only for what it needs: the hundreds
// of other fields may hold anything. A Pod without a namespace is in "default"; a
// Pod without addresses has none yet.
func ReadPod(data []byte) (Pod, bocage.Faults) {
	var o podObject
	if faults := decode(data, "Pod", &o, func() (string, string) { return o.Kind, o.Metadata.Name }); len(faults) > 0 {
		return Pod{}, faults
	}
	return o.read()
}

func (o *podObject) read() (Pod, bocage.Faults) {
	w := &bocage.Workload{
		TypeMeta:   bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "Workload"},
		ObjectMeta: o.Metadata.of(),
		Spec:       bocage.WorkloadSpec{Host: o.Spec.NodeName, Orchestrator: bocage.OrchestratorKubernetes},
	}
	if w.Namespace == "" {
		w.Namespace = "default"
	}
	var faults bocage.Faults
	addresses := []string{o.Status.PodIP}
	for _, a := range o.Status.PodIPs {
		addresses = append(addresses, a.IP)
	}
	for i, text := range addresses {
		at := "status.podIP"
		if i > 0 {
			at = fmt.Sprintf("status.podIPs[%d].ip", i-1)
		}
		w.Spec.Addresses = addAddress(w.Spec.Addresses, &faults, at, text)
	}
	w.Spec.Ports = addPorts(w.Spec.Ports, &faults, "spec.containers", o.Spec.Containers, func(container) bool { return true })
	// A sidecar is an init container that stays; the others are gone once the
	// Pod serves.
	w.Spec.Ports = addPorts(w.Spec.Ports, &faults, "spec.initContainers", o.Spec.InitContainers,
		func(c container) bool { return c.RestartPolicy == "Always" })
	return Pod{
		Workload:    w,
		HostNetwork: o.Spec.HostNetwork,
		Ended:       o.Status.Phase == "Succeeded" || o.Status.Phase == "Failed",
	}, faults
}

// addPorts appends the named ports of containers: those without a name cannot be
// meant by it. All are checked as an API server does.
func addPorts(ports []bocage.NamedPort, faults *bocage.Faults, list string, containers []container, counts func(container) bool) []bocage.NamedPort {
	for i, c := range containers {
		first := map[string]int{}
		for j, p := range c.Ports {
			at := fmt.Sprintf("%s[%d].ports[%d]", list, i, j)
			before := len(*faults)
			number, wrong := p.number()
			if wrong != "" {
				faults.Add(at+".containerPort", "%s", wrong)
			}
			switch p.Protocol {
			case "":
				p.Protocol = "TCP"
			case "TCP", "UDP", "SCTP":
			default:
				faults.Add(at+".protocol", "%q is not TCP, UDP or SCTP", p.Protocol)
			}
			if p.Name == "" {
				continue
			}
			if wrong := bocage.PortNameFault(p.Name); wrong != "" {
				faults.Add(at+".name", "%q is not the name of a port: it %s", p.Name, wrong)
			} else if other, twice := first[p.Name]; twice {
				faults.Add(at+".name", "%q is the name of ports[%d] already", p.Name, other)
			}
			first[p.Name] = j
			named := bocage.NamedPort{Name: p.Name, Port: number, Protocol: p.Protocol}
			if len(*faults) == before && counts(c) && !slices.Contains(ports, named) {
				ports = append(ports, named)
			}
		}
	}
	return ports
}

type nodeObject struct {
	Kind     string     `json:"kind"`
	Metadata objectMeta `json:"metadata"`
	Status   struct {
		Addresses []struct {
			Type    string `json:"type"`
			Address string `json:"address"`
		} `json:"addresses"`
	} `json:"status"`
}

// ReadNode reads the JSON of a Node as a host: its labels and its internal and
// external addresses.
func ReadNode(data []byte) (*bocage.Host, bocage.Faults) {
	var o nodeObject
	if faults := decode(data, "Node", &o, func() (string, string) { return o.Kind, o.Metadata.Name }); len(faults) > 0 {
		return nil, faults
	}
	h := &bocage.Host{TypeMeta: bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "Host"}, ObjectMeta: o.Metadata.of()}
	h.Namespace = ""
	var faults bocage.Faults
	for i, a := range o.Status.Addresses {
		if a.Type == "InternalIP" || a.Type == "ExternalIP" {
			h.Spec.Addresses = addAddress(h.Spec.Addresses, &faults, fmt.Sprintf("status.addresses[%d].address", i), a.Address)
		}
	}
	return h, faults
}

// decode reads an object of a kind; named tells the kind and the name that it read.
func decode(data []byte, kind string, into any, named func() (string, string)) bocage.Faults {
	var faults bocage.Faults
	var wrong *json.UnmarshalTypeError
	switch err := json.Unmarshal(data, into); {
	case errors.As(err, &wrong):
		if faults := labelFaults(data); len(faults) > 0 {
			return faults
		}
		faults.Add(strings.Replace(wrong.Field, ".objectMeta.", ".", 1), "is of the wrong kind (%s): this is not how a %s is written", wrong.Value, kind)
		return faults
	case err != nil:
		faults.Add("", "is not a %s: %v", kind, err)
		return faults
	}
	is, name := named()
	if is != "" && kind != "" && is != kind {
		faults.Add("kind", "%q is not %s", is, kind)
	}
	if name == "" {
		faults.Add("metadata.name", "a %s needs a name", kind)
	}
	return faults
}

// labelFaults finds labels that are no text: YAML reads 55 and true as something else.
func labelFaults(data []byte) bocage.Faults {
	var faults bocage.Faults
	for _, path := range []string{"metadata.labels", "metadata.annotations", "spec.template.metadata.labels", "spec.jobTemplate.spec.template.metadata.labels"} {
		var at any
		if json.Unmarshal(data, &at) != nil {
			return nil
		}
		for _, name := range strings.Split(path, ".") {
			fields, _ := at.(map[string]any)
			at = fields[name]
		}
		labels, _ := at.(map[string]any)
		for _, key := range slices.Sorted(maps.Keys(labels)) {
			switch value := labels[key].(type) {
			case string, nil:
			case map[string]any, []any:
				faults.Add(fmt.Sprintf("%s[%s]", path, key), "is not text")
			default:
				faults.Add(fmt.Sprintf("%s[%s]", path, key), "%v is not text: write \"%v\" in quotes", value, value)
			}
		}
	}
	return faults
}

// addAddress appends an address once. Kubernetes writes the first address twice,
// and none as an empty text.
func addAddress(list []netip.Addr, faults *bocage.Faults, at, text string) []netip.Addr {
	if text == "" {
		return list
	}
	address, err := netip.ParseAddr(text)
	if err != nil || address.Zone() != "" {
		faults.Add(at, "%q is not an IP address", text)
		return list
	}
	if address = address.Unmap(); slices.Contains(list, address) {
		return list
	}
	return append(list, address)
}
