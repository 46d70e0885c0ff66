package kubernetes

import (
	"encoding/json"

	"bocage.dev/bocage"
)

// Template is what a controller of Kubernetes makes Pods of.
type Template struct {
	// Pod is one of them: the controller's name, and the labels, ports and network
	// of its template. It has no address and no node yet.
	Pod
	// Kind is the controller's.
	Kind string
	// Replicas is how many there are to be; a DaemonSet has one for each node.
	Replicas int64
	// PerNode says that there is one for each node.
	PerNode bool
	// Owned says that another controller made this one, and speaks for it.
	Owned bool
}

type controllerObject struct {
	Kind     string `json:"kind"`
	Metadata struct {
		objectMeta
		OwnerReferences []struct {
			Controller bool `json:"controller"`
		} `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		jobSpec
		Replicas    *int64 `json:"replicas"`
		JobTemplate struct {
			Spec jobSpec `json:"spec"`
		} `json:"jobTemplate"`
	} `json:"spec"`
}

type jobSpec struct {
	Parallelism *int64       `json:"parallelism"`
	Template    *podTemplate `json:"template"`
}

type podTemplate struct {
	Metadata objectMeta      `json:"metadata"`
	Spec     json.RawMessage `json:"spec"`
}

// IsController reports whether objects of a kind make Pods of a template.
func IsController(apiVersion, kind string) bool {
	switch kind {
	case "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet":
		return apiVersion == "apps/v1"
	case "Job", "CronJob":
		return apiVersion == "batch/v1"
	case "ReplicationController":
		return apiVersion == "v1"
	}
	return false
}

// ReadTemplate reads the JSON of a controller.
func ReadTemplate(data []byte) (Template, bocage.Faults) {
	var o controllerObject
	if faults := decode(data, "", &o, func() (string, string) { return "", o.Metadata.Name }); len(faults) > 0 {
		return Template{}, faults
	}
	t := Template{Kind: o.Kind, Replicas: 1, PerNode: o.Kind == "DaemonSet"}
	for _, owner := range o.Metadata.OwnerReferences {
		t.Owned = t.Owned || owner.Controller
	}
	job, at := o.Spec.jobSpec, "spec.template"
	if o.Kind == "CronJob" {
		job, at = o.Spec.JobTemplate.Spec, "spec.jobTemplate.spec.template"
	}
	switch {
	case o.Spec.Replicas != nil:
		t.Replicas = *o.Spec.Replicas
	case job.Parallelism != nil:
		t.Replicas = *job.Parallelism
	}
	var faults bocage.Faults
	if t.Replicas < 0 {
		faults.Add("spec.replicas", "%d is less than 0", t.Replicas)
	}
	if job.Template == nil {
		faults.Add(at, "is missing: a %s makes Pods of it", o.Kind)
		return t, faults
	}
	var pod podObject
	pod.Metadata = objectMeta{Name: o.Metadata.Name, Namespace: o.Metadata.Namespace, Labels: job.Template.Metadata.Labels}
	if len(job.Template.Spec) > 0 {
		faults = append(faults, decode(job.Template.Spec, "Pod's template", &pod.Spec, func() (string, string) { return "", o.Metadata.Name }).Under(at+".spec")...)
	}
	if len(faults) > 0 {
		return t, faults
	}
	var found bocage.Faults
	t.Pod, found = pod.read()
	return t, append(faults, found.Under(at)...)
}
