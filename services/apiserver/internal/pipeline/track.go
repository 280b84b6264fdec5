package pipeline

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"

	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/fieldmanager"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// track records in obj which fields the writer changed.
func (p *Pipeline) track(c *change, old, obj resource.Object) {
	if p.cfg.Fields == nil {
		return
	}
	p.cfg.Fields.Track(fieldmanager.Write{
		Kind: c.kind, Subresource: c.target.Subresource, Old: old, Object: obj,
		Manager: c.opts.manager(), Now: p.cfg.Now(),
	})
}

// newApply completes the change of a server-side apply.
func (p *Pipeline) newApply(c *change, sub *resource.Subresource, b Body) error {
	if p.cfg.Fields == nil {
		return errMethod(c.target, "apply")
	}
	configuration, repeated, err := readConfiguration(c.kind, b.Data, codec.Validation(c.opts.FieldValidation))
	if err != nil {
		return err
	}
	if err := checkConfiguration(c.kind, sub, configuration); err != nil {
		return err
	}
	var warnings []string
	if c.opts.FieldValidation != string(codec.Strict) {
		warnings = codec.StrictWarnings(repeated)
	}
	// Duplicate keys are refused after conflicts, as in Kubernetes.
	strict := func() error {
		if len(repeated) > 0 && c.opts.FieldValidation == string(codec.Strict) {
			return apierrors.NewBadRequest(fmt.Sprintf("error strict decoding patch: %v", repeated[0]))
		}
		return nil
	}
	if sub != nil && sub.Scale != nil {
		c.plan = func(cur *watchcache.Item) (*step, error) {
			c.warn = warnings
			return p.planScaleApply(c, sub.Scale, cur, configuration, strict)
		}
		return nil
	}
	c.plan = func(cur *watchcache.Item) (*step, error) {
		c.warn = warnings
		w := fieldmanager.Write{Kind: c.kind, Subresource: c.target.Subresource, Manager: c.opts.FieldManager, Now: p.cfg.Now()}
		if cur != nil {
			w.Old = cur.Object()
		} else if c.target.Subresource != "" {
			return nil, apierrors.NewNotFound(c.gr(), c.target.Name)
		}
		obj, err := p.cfg.Fields.Apply(w, runtime.DeepCopyJSON(configuration), c.opts.Force)
		if err != nil {
			return nil, err
		}
		if err := strict(); err != nil {
			return nil, err
		}
		if err := checkNames(c, obj); err != nil {
			return nil, err
		}
		if cur != nil {
			return p.planUpdate(c, cur, obj, false)
		}
		if uid := obj.GetUID(); uid != "" {
			return nil, apierrors.NewConflict(c.gr(), c.target.Name, fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", uid))
		}
		if err := p.Authorize(c.ctx, "create", c.target); err != nil {
			return nil, err
		}
		return p.planCreate(c, obj, false)
	}
	return nil
}

// checkConfiguration refuses a configuration without its apiVersion and kind.
func checkConfiguration(k *resource.Kind, sub *resource.Subresource, configuration map[string]any) error {
	gvk := k.GVK
	if sub != nil && sub.Scale != nil {
		gvk = scaleGVK
	}
	apiVersion, kind := gvk.ToAPIVersionAndKind()
	for _, field := range []struct{ name, want string }{{"apiVersion", apiVersion}, {"kind", kind}} {
		if value, _ := configuration[field.name].(string); value == "" {
			// The beginning of the message is Kubernetes'.
			return apierrors.NewBadRequest(fmt.Sprintf("invalid object type: the configuration has no %s: want %q", field.name, field.want))
		}
	}
	return nil
}

// readConfiguration parses an applied configuration. It is YAML, even if it begins with a brace.
// The returned errors are those about duplicate keys.
func readConfiguration(k *resource.Kind, data []byte, v codec.Validation) (map[string]any, []error, error) {
	text := data
	if !flow(data) || !json.Valid(data) {
		var err error
		text, err = codec.YAMLToJSON(data, false)
		switch {
		case err != nil && flow(data):
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: error converting YAML to JSON: %v", err))
		case err != nil:
			return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error encoding patch: %v", err))
		}
	}
	if err := codec.CheckText(text, reflect.TypeOf(k.New())); err != nil {
		return nil, nil, err
	}
	var configuration map[string]any
	repeated, err := kjson.UnmarshalStrict(text, &configuration)
	if err != nil {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: error unmarshaling JSON: while decoding JSON: %v", err))
	}
	if configuration == nil {
		return nil, nil, apierrors.NewBadRequest("error decoding patch: the configuration is empty")
	}
	// JSON without duplicate keys has none as YAML either; checking the YAML would cost much
	// more.
	if v == codec.Ignore || len(repeated) == 0 && bytes.Equal(text, data) {
		return configuration, nil, nil
	}
	if _, err := codec.YAMLToJSON(data, true); err != nil {
		return configuration, []error{fmt.Errorf("error converting YAML to JSON: %w", err)}, nil
	}
	return configuration, nil, nil
}

// flow reports whether a document is in YAML's flow style, which includes JSON.
func flow(data []byte) bool {
	data = bytes.TrimLeft(data, " \t\r\n")
	return len(data) > 0 && data[0] == '{'
}
