package clienttest

import (
	"context"
	"encoding/json"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"

	"google.golang.org/protobuf/types/known/anypb"

	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Patch implements ResourceService.
func (s *Server) Patch(ctx context.Context, req *resourcev1.PatchRequest) (*resourcev1.PatchResponse, error) {
	a, _, err := s.patch(ctx, req)
	return &resourcev1.PatchResponse{Object: a}, rpcError(err)
}

// Apply implements ResourceService: a strategic merge, or a create.
func (s *Server) Apply(ctx context.Context, req *resourcev1.ApplyRequest) (*resourcev1.ApplyResponse, error) {
	a, _, err := s.apply(ctx, req)
	return &resourcev1.ApplyResponse{Object: a}, rpcError(err)
}

func (s *Server) patch(ctx context.Context, req *resourcev1.PatchRequest) (*anypb.Any, uint64, error) {
	ref := req.GetRef()
	if err := s.failure("Patch", ref); err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.collection(ref)
	if err != nil {
		return nil, 0, err
	}
	old, err := s.get(c, ref)
	if err != nil {
		return nil, 0, err
	}
	obj, err := patched(c.kind, old, req.GetKind(), req.GetPatch())
	if err != nil {
		return nil, 0, err
	}
	return s.replace(ctx, c, ref.GetSubresource(), old, obj, req.GetOptions())
}

func patched(k *client.Kind, old client.Object, kind resourcev1.PatchRequest_Kind, patch []byte) (client.Object, error) {
	before, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	var after []byte
	switch kind {
	case resourcev1.PatchRequest_KIND_JSON:
		var ops jsonpatch.Patch
		if ops, err = jsonpatch.DecodePatch(patch); err == nil {
			after, err = ops.Apply(before)
		}
	case resourcev1.PatchRequest_KIND_MERGE:
		after, err = jsonpatch.MergePatch(before, patch)
	case resourcev1.PatchRequest_KIND_STRATEGIC_MERGE:
		after, err = strategicpatch.StrategicMergePatch(before, patch, k.New())
	default:
		return nil, apierrors.NewBadRequest("a patch without a kind")
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	obj := k.New()
	if err := json.Unmarshal(after, obj); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	// Protobuf carries no TypeMeta, and stored objects have none.
	return stripped(obj), nil
}

// stripped takes an object through its protobuf form, which drops apiVersion
// and kind and the difference between empty and absent.
func stripped(obj client.Object) client.Object {
	data, err := obj.Marshal()
	if err != nil {
		return obj
	}
	out := client.KindOf(obj).New()
	if out.Unmarshal(data) != nil {
		return obj
	}
	return out
}

func (s *Server) apply(ctx context.Context, req *resourcev1.ApplyRequest) (*anypb.Any, uint64, error) {
	ref := req.GetRef()
	if err := s.failure("Apply", ref); err != nil {
		return nil, 0, err
	}
	if req.GetOptions().GetFieldManager() == "" {
		return nil, 0, apierrors.NewBadRequest("fieldManager is required for apply patch")
	}
	doc := req.GetConfiguration()
	if !strings.HasPrefix(strings.TrimSpace(string(doc)), "{") {
		j, err := yaml.YAMLToJSON(doc)
		if err != nil {
			return nil, 0, apierrors.NewBadRequest(err.Error())
		}
		doc = j
	}
	s.mu.Lock()
	c, err := s.collection(ref)
	if err != nil {
		s.mu.Unlock()
		return nil, 0, err
	}
	old, err := s.get(c, ref)
	if err == nil {
		defer s.mu.Unlock()
		obj, err := patched(c.kind, old, resourcev1.PatchRequest_KIND_STRATEGIC_MERGE, doc)
		if err != nil {
			return nil, 0, err
		}
		return s.replace(ctx, c, ref.GetSubresource(), old, obj, req.GetOptions())
	}
	s.mu.Unlock()
	if ref.GetSubresource() != "" {
		return nil, 0, err
	}
	obj := c.kind.New()
	if err := json.Unmarshal(doc, obj); err != nil {
		return nil, 0, apierrors.NewBadRequest(err.Error())
	}
	obj.SetName(ref.GetName())
	a, err := encode(stripped(obj))
	if err != nil {
		return nil, 0, err
	}
	return s.create(ctx, &resourcev1.CreateRequest{
		Ref: c.kind.Ref(ref.GetNamespace(), "", ""), Object: a, Options: req.GetOptions(),
	})
}
