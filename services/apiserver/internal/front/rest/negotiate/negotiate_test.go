package negotiate

import "testing"

const (
	kubectlTable = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
	metadata     = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
)

func TestAccept(t *testing.T) {
	for _, tc := range []struct {
		header  string
		purpose Purpose
		want    Format
		refused bool
	}{
		{header: "", purpose: Read},
		{header: "*/*", purpose: Read},
		{header: "application/*", purpose: Read},
		{header: "application/json", purpose: Read},
		{header: "application/json; charset=utf-8", purpose: Read},
		{header: "text/html, */*", purpose: Read},
		{header: "application/yaml", purpose: Read, want: Format{Encoding: YAML}},
		{header: "application/vnd.kubernetes.protobuf,application/json", purpose: Watch, want: Format{Encoding: Protobuf}},
		{header: "application/vnd.kubernetes.protobuf", purpose: Object, want: Format{Encoding: Protobuf}},
		{header: "application/json;q=0.5,application/vnd.kubernetes.protobuf;q=0.9", purpose: Read, want: Format{Encoding: Protobuf}},
		{header: "*/*,application/yaml", purpose: Read, want: Format{Encoding: YAML}},
		{header: "application/yaml;q=0,application/json", purpose: Read},
		{header: "application/cbor,application/json", purpose: Read},
		{header: kubectlTable, purpose: Read, want: Format{Transform: Table}},
		{header: kubectlTable, purpose: Watch, want: Format{Transform: Table}},
		{header: kubectlTable, purpose: Object},
		{header: "application/json;as=Table;v=v1beta1;g=meta.k8s.io", purpose: Read, want: Format{Transform: Table, Beta: true}},
		{header: "application/yaml;as=Table;v=v1;g=meta.k8s.io", purpose: Read, want: Format{Encoding: YAML, Transform: Table}},
		{header: "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json", purpose: Read},
		{header: metadata, purpose: Read, want: Format{Encoding: Protobuf, Transform: PartialMetadata, List: true}},
		{header: "application/json;as=Poem;v=v1;g=meta.k8s.io,application/json", purpose: Read},
		{header: "application/json;as=Table;v=v7;g=meta.k8s.io", purpose: Read, refused: true},
		{header: "application/yaml", purpose: Watch, refused: true},
		{header: "text/html", purpose: Read, refused: true},
		{header: "application/json;q=0", purpose: Read}, // Kubernetes does not treat 0 as a refusal
		{header: "application/json;q=0,application/yaml", purpose: Read, want: Format{Encoding: YAML}},
		{header: "application/json;pretty=1", purpose: Object, want: Format{Pretty: true}},
		{header: "application/json;stream=x", purpose: Read, refused: true},
		{header: "application/json;sv=v2", purpose: Read, refused: true},
		{header: "application/json;g=meta.k8s.io;v=v1", purpose: Read, refused: true},
		{header: ",;,", purpose: Read, refused: true},
	} {
		got, ok := Accept(tc.header, tc.purpose)
		if ok == tc.refused || got != tc.want {
			t.Errorf("%q: got %+v, %t", tc.header, got, ok)
		}
	}
}

func TestGzip(t *testing.T) {
	for header, want := range map[string]bool{
		"": false, "gzip": true, "deflate, gzip;q=0.5": true, "gzip;q=0": false, "br": false, "identity,gzip": true,
	} {
		if got := Gzip(header); got != want {
			t.Errorf("%q: %t", header, got)
		}
	}
}

func TestBodyAndPatch(t *testing.T) {
	for header, want := range map[string]Encoding{
		"": JSON, "application/json": JSON, "Application/JSON; charset=utf-8": JSON,
		"application/yaml": YAML, "application/vnd.kubernetes.protobuf": Protobuf,
	} {
		if got, ok := Body(header); !ok || got != want {
			t.Errorf("%q: %v, %t", header, got, ok)
		}
	}
	for _, header := range []string{";", "text/plain", "application/x-www-form-urlencoded", "application/merge-patch+json"} {
		if _, ok := Body(header); ok {
			t.Errorf("%q was accepted for a body", header)
		}
	}
	for _, header := range []string{
		"application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml",
	} {
		if got, ok := Patch(header + ";x=y"); !ok || string(got) != header {
			t.Errorf("%q: %v, %t", header, got, ok)
		}
	}
	if _, ok := Patch("application/json"); ok {
		t.Error("plain JSON was accepted for a patch")
	}
}

func TestDiscovery(t *testing.T) {
	const kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
	for _, tc := range []struct {
		header     string
		aggregated bool
		want       DiscoveryFormat
		refused    bool
	}{
		{header: "", aggregated: true},
		{header: kubectl, aggregated: true, want: DiscoveryFormat{Version: "v2"}},
		{header: kubectl},
		{header: "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList", aggregated: true, want: DiscoveryFormat{Version: "v2beta1"}},
		{header: "application/vnd.kubernetes.protobuf", want: DiscoveryFormat{Encoding: Protobuf}},
		{header: "text/html", refused: true},
	} {
		got, ok := AcceptDiscovery(tc.header, tc.aggregated)
		if ok == tc.refused || got != tc.want {
			t.Errorf("%q: got %+v, %t", tc.header, got, ok)
		}
	}
}

func TestMedia(t *testing.T) {
	offers := []string{MediaJSON, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"}
	for header, want := range map[string]int{
		"": 0, "*/*": 0, MediaJSON: 0, offers[1]: 1, offers[1] + ",application/json": 1, "*/*, " + offers[1]: 1, "text/html": -1,
	} {
		got, ok := Media(header, offers...)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d", header, got)
		}
	}
}

func FuzzAccept(f *testing.F) {
	f.Add(kubectlTable)
	f.Add(metadata)
	f.Add("a;q=1e309,*/*;q==")
	f.Fuzz(func(t *testing.T, header string) {
		for purpose := Object; purpose <= Watch; purpose++ {
			got, ok := Accept(header, purpose)
			if !ok && got != (Format{}) {
				t.Errorf("%q: refused, but %+v", header, got)
			}
			if purpose == Object && got.Transform != Whole || purpose == Watch && got.Encoding == YAML || got.Transform == Table && got.Encoding == Protobuf {
				t.Errorf("%q: %+v for %d", header, got, purpose)
			}
		}
		Gzip(header)
		Body(header)
		Patch(header)
		AcceptDiscovery(header, true)
	})
}
