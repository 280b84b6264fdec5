package client

import (
	"context"
	"fmt"
	"reflect"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"

	"google.golang.org/protobuf/types/known/anypb"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Post creates a subresource of an object of T's kind, one that is an action, with body as
// its argument, and returns the server's answer, for instance:
//
//	token, err := client.Post[*corev1.ServiceAccount, *authenticationv1.TokenRequest](ctx, c, ns, name, "token", request)
//
// It panics if T or R is not a built-in kind.
func Post[T, R Object](ctx context.Context, c *Client, namespace, name, subresource string, body Object, opts ...WriteOption) (R, error) {
	var none R
	answer, err := post(ctx, c, mustKind(reflect.TypeFor[T]()), namespace, name, subresource, body, opts)
	if err != nil {
		return none, err
	}
	k := mustKind(reflect.TypeFor[R]())
	obj := k.New().(R)
	if err := decode(k, answer, obj); err != nil {
		return none, err
	}
	return obj, nil
}

func post(ctx context.Context, c *Client, k *Kind, namespace, name, subresource string, body Object, opts []WriteOption) (*anypb.Any, error) {
	a, err := Encode(body)
	if err != nil {
		return nil, err
	}
	resp, err := c.rpc.Create(ctx, &resourcev1.CreateRequest{
		Ref: k.Ref(namespace, name, subresource), Object: a, Options: &c.writeOptions(opts).rpc,
	})
	if err != nil {
		return nil, fromRPC(ctx, fmt.Sprintf("create %s/%s %s/%s", k.Resource, subresource, namespace, name), err)
	}
	return resp.GetObject(), nil
}

// Bind assigns pod to a node. If the pod's uid is set, it must be the present one. The error
// is a conflict (409) if the pod has another uid or is assigned already.
func Bind(ctx context.Context, c *Client, pod *corev1.Pod, node string) error {
	_, err := post(ctx, c, mustKind(reflect.TypeFor[*corev1.Pod]()), pod.Namespace, pod.Name, "binding", binding(pod, node), nil)
	return err
}

func binding(pod *corev1.Pod, node string) *corev1.Binding {
	b := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node}}
	b.Namespace, b.Name, b.UID = pod.Namespace, pod.Name, pod.UID
	return b
}

// Evict requests the eviction of the pod that eviction names. The server may refuse it with
// 429 (apierrors.IsTooManyRequests), as a PodDisruptionBudget demands.
func Evict(ctx context.Context, c *Client, eviction *policyv1.Eviction) error {
	_, err := post(ctx, c, mustKind(reflect.TypeFor[*corev1.Pod]()), eviction.Namespace, eviction.Name, "eviction", eviction, nil)
	return err
}

// GetScale returns the scale subresource of an object of a kind that has one (Deployment,
// ReplicaSet).
func (r Resource[T]) GetScale(ctx context.Context, namespace, name string) (*autoscalingv1.Scale, error) {
	resp, err := r.c.rpc.Get(ctx, &resourcev1.GetRequest{Ref: r.kind.Ref(namespace, name, "scale")})
	if err != nil {
		return nil, fromRPC(ctx, r.what("get scale of", namespace, name), err)
	}
	scale := &autoscalingv1.Scale{}
	return scale, decode(mustKind(reflect.TypeFor[*autoscalingv1.Scale]()), resp.GetObject(), scale)
}

// UpdateScale sets the number of replicas of the object that scale names, and returns the
// new scale. It is conditional on the resourceVersion of scale, if that is set.
func (r Resource[T]) UpdateScale(ctx context.Context, scale *autoscalingv1.Scale, opts ...WriteOption) (*autoscalingv1.Scale, error) {
	a, err := Encode(scale)
	if err != nil {
		return nil, err
	}
	resp, err := r.c.rpc.Update(ctx, &resourcev1.UpdateRequest{
		Ref: r.kind.Ref(scale.Namespace, scale.Name, "scale"), Object: a, Options: &r.c.writeOptions(opts).rpc,
	})
	if err != nil {
		return nil, fromRPC(ctx, r.what("update scale of", scale.Namespace, scale.Name), err)
	}
	out := &autoscalingv1.Scale{}
	return out, decode(KindOf(out), resp.GetObject(), out)
}
