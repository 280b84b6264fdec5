package pipeline

import (
	"math/rand"
	"testing"

	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/kind/core"
)

// TestPlainMetadataIsValid compares the quick checks with apimachinery's: what they accept must
// be valid.
func TestPlainMetadataIsValid(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	words := []string{"", "a", "A-b", "-", "a.b", "a..b", "x/y", "example.com/x", "a_b", "Ä", "a/b/c", "UP.com/x", "v1", "apps/v1", "apps/", "Event", "a b"}
	word := func() string { return words[rng.Intn(len(words))] }
	pairs := func() map[string]string {
		m := map[string]string{}
		for range rng.Intn(3) {
			m[word()] = word()
		}
		return m
	}
	random := func() *metav1.ObjectMeta {
		m := &metav1.ObjectMeta{
			Name: word(), Namespace: word(), UID: types.UID(word()), Labels: pairs(), Annotations: pairs(),
			ResourceVersion: word(), Generation: int64(rng.Intn(4)) - 1,
		}
		if yes := true; rng.Intn(3) == 0 {
			for range 2 {
				m.OwnerReferences = append(m.OwnerReferences, metav1.OwnerReference{APIVersion: word(), Kind: word(), Name: word(), UID: types.UID(word()), Controller: &yes})
			}
		}
		if rng.Intn(3) == 0 {
			m.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: word(), Operation: "Update", FieldsType: "FieldsV1"}}
		}
		return m
	}
	accepted := 0
	for range 200000 {
		a, b := random(), random()
		if rng.Intn(2) == 0 {
			b.Name, b.Namespace, b.UID = a.Name, a.Namespace, a.UID
		}
		if plainNew(core.ConfigMap(), a) && plainSubdomain(a.Name) {
			accepted++
			if errs := validation.ValidateObjectMetaAccessor(a, true, defaultName, metadataPath); len(errs) > 0 {
				t.Fatalf("%+v: %v", a, errs)
			}
		}
		if plainUpdate(a, b) {
			accepted++
			if errs := validation.ValidateObjectMetaAccessorUpdate(a, b, metadataPath); len(errs) > 0 {
				t.Fatalf("%+v from %+v: %v", a, b, errs)
			}
		}
	}
	if accepted < 100 {
		t.Errorf("only %d objects were accepted", accepted)
	}
}
