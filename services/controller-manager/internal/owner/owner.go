// Package owner decides which objects belong to a controller's object: by
// controller reference, and for those without one, by selector.
//
// It must never adopt for an owner that is being deleted, nor take an object
// from another controller.
package owner

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
)

// Claims is what an owner has and should change.
type Claims[T client.Object] struct {
	// Keep are its objects; Adopt match but have no controller; Release are its
	// objects that match no more.
	Keep, Adopt, Release []T
}

// Claim sorts the objects that owner controls, and orphans of its namespace.
// Objects that are being deleted are neither adopted nor released.
func Claim[T client.Object](owner client.Object, selector labels.Selector, owned, orphans []T) Claims[T] {
	var c Claims[T]
	leaving := owner.GetDeletionTimestamp() != nil
	for _, obj := range owned {
		switch {
		case selector.Matches(labels.Set(obj.GetLabels())):
			c.Keep = append(c.Keep, obj)
		case leaving || obj.GetDeletionTimestamp() != nil:
		default:
			c.Release = append(c.Release, obj)
		}
	}
	if leaving || selector.Empty() {
		return c
	}
	for _, obj := range orphans {
		if obj.GetDeletionTimestamp() == nil && selector.Matches(labels.Set(obj.GetLabels())) {
			c.Adopt = append(c.Adopt, obj)
		}
	}
	return c
}

// Reference is the controller reference to an owner.
func Reference(owner client.Object) metav1.OwnerReference {
	k, yes := client.KindOf(owner), true
	return metav1.OwnerReference{
		APIVersion: k.APIVersion(), Kind: k.GVK.Kind, Name: owner.GetName(), UID: owner.GetUID(),
		Controller: &yes, BlockOwnerDeletion: &yes,
	}
}

// AdoptPatch is the strategic merge patch that makes owner the controller of the
// object with this uid; finalizers are added.
func AdoptPatch(owner client.Object, uid types.UID, finalizers ...string) []byte {
	meta := map[string]any{"uid": uid, "ownerReferences": []any{Reference(owner)}}
	if len(finalizers) > 0 {
		meta["finalizers"] = finalizers
	}
	return patch(meta)
}

// ReleasePatch is the strategic merge patch that ends owner's control of the
// object with this uid; finalizers are removed.
func ReleasePatch(owner, uid types.UID, finalizers ...string) []byte {
	meta := map[string]any{
		"uid":             uid,
		"ownerReferences": []any{map[string]any{"$patch": "delete", "uid": owner}},
	}
	if len(finalizers) > 0 {
		meta["$deleteFromPrimitiveList/finalizers"] = finalizers
	}
	return patch(meta)
}

func patch(meta map[string]any) []byte {
	data, err := json.Marshal(map[string]any{"metadata": meta})
	if err != nil {
		panic("owner: " + err.Error()) // strings and references always marshal.
	}
	return data
}
