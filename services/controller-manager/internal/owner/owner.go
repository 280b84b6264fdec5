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

// Claims sorts objects by what to do with them on behalf of an owner.
type Claims[T client.Object] struct {
	// Keep lists the owner's objects that match its selector, Adopt the matching objects
	// without a controller, and Release the owner's objects that no longer match.
	Keep, Adopt, Release []T
}

// Claim sorts the objects that owner controls (owned) and those in its namespace without
// a controller (orphans). Objects that are being deleted are neither adopted nor
// released, and an owner that is being deleted adopts and releases nothing.
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

// Reference returns the controller reference to an owner.
func Reference(owner client.Object) metav1.OwnerReference {
	k, yes := client.KindOf(owner), true
	return metav1.OwnerReference{
		APIVersion: k.APIVersion(), Kind: k.GVK.Kind, Name: owner.GetName(), UID: owner.GetUID(),
		Controller: &yes, BlockOwnerDeletion: &yes,
	}
}

// AdoptPatch returns the strategic merge patch that makes owner the controller of the
// object with the given uid and adds finalizers to it.
func AdoptPatch(owner client.Object, uid types.UID, finalizers ...string) []byte {
	meta := map[string]any{"uid": uid, "ownerReferences": []any{Reference(owner)}}
	if len(finalizers) > 0 {
		meta["finalizers"] = finalizers
	}
	return patch(meta)
}

// ReleasePatch returns the strategic merge patch that removes owner from the owners of
// the object with the given uid, and removes finalizers from it.
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
		panic("owner: " + err.Error()) // strings and references always marshal
	}
	return data
}
