// Command informer watches a kind with client-go's informer, as controllers do,
// and prints what its cache learns, a line for each change. The tests run it
// against our own API. NetworkPolicies are read with the types that client-go has
// compiled in, and the program makes and deletes one of its own; all other kinds
// are read without types. It ends with its standard input.
//
//	informer KUBECONFIG RESOURCE
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	typed "k8s.io/client-go/kubernetes/typed/networking/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: informer KUBECONFIG RESOURCE")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(kubeconfig, resource string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if resource == "networkpolicies" {
		client, err := typed.NewForConfig(config)
		if err != nil {
			return err
		}
		if err := follow(ctx, resource, policies(client)); err != nil {
			return err
		}
		if err := writePolicy(ctx, client); err != nil {
			return err
		}
	} else {
		informer, err := untyped(config, resource)
		if err != nil {
			return err
		}
		if err := follow(ctx, resource, informer); err != nil {
			return err
		}
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func untyped(config *rest.Config, resource string) (cache.SharedIndexInformer, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	factory := dynamicinformer.NewDynamicSharedInformerFactory(client, time.Hour)
	return factory.ForResource(schema.GroupVersionResource{Group: "bocage.dev", Version: "v1", Resource: resource}).Informer(), nil
}

func policies(client *typed.NetworkingV1Client) cache.SharedIndexInformer {
	all := client.NetworkPolicies(metav1.NamespaceAll)
	return cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return all.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return all.Watch(ctx, options)
		},
	}, &networkingv1.NetworkPolicy{}, time.Hour, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
}

// follow prints what the informer learns; it returns once the first is known.
func follow(ctx context.Context, resource string, informer cache.SharedIndexInformer) error {
	tell := func(what string, object any) {
		if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = gone.Obj
		}
		if o, err := meta.Accessor(object); err == nil {
			fmt.Printf("%s %s/%s\n", what, o.GetNamespace(), o.GetName())
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { tell("added", object) },
		UpdateFunc: func(_, object any) { tell("updated", object) },
		DeleteFunc: func(object any) { tell("deleted", object) },
	})
	if err != nil {
		return err
	}
	go informer.RunWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return fmt.Errorf("the cache of %s did not fill", resource)
	}
	fmt.Printf("synced %d\n", len(informer.GetStore().ListKeys()))
	return nil
}

// writePolicy makes a policy, changes it and reads it back, all with types, and
// prints what it reads.
func writePolicy(ctx context.Context, client *typed.NetworkingV1Client) error {
	port := intstr.FromString("https")
	policy, err := client.NetworkPolicies("typed").Create(ctx, &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "typed", Labels: map[string]string{"by": "client-go"}},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: &port}}}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	policy.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	if policy, err = client.NetworkPolicies("typed").Update(ctx, policy, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update: %w", err)
	}
	list, err := client.NetworkPolicies("typed").List(ctx, metav1.ListOptions{LabelSelector: "by=client-go"})
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if len(list.Items) != 1 {
		return errors.New("the policy is not in the list")
	}
	read := list.Items[0]
	fmt.Printf("typed %s %s %s %d\n", read.Spec.Ingress[0].Ports[0].Port, read.Spec.PolicyTypes[0], read.Spec.PodSelector.MatchLabels["app"], read.Generation)
	err = client.NetworkPolicies("typed").Delete(ctx, read.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(policy.UID))})
	if err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}
