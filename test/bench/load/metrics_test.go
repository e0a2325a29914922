package load

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const metricsPage = `# HELP varve_objectstore_requests_total Requests to the object store.
# TYPE varve_objectstore_requests_total counter
varve_objectstore_requests_total{op="put",result="ok"} 12
varve_objectstore_requests_total{op="put",result="error"} 1
varve_objectstore_requests_total{op="get",path="a } b"} 5 1700000000000
varve_objectstore_put_bytes_total 1.048576e+08
varve_objectstore_requests_total_more{op="put"} 99
go_goroutines 8
broken{op="put" 3
`

func TestParseObjectRequests(t *testing.T) {
	got := parseObjectRequests(strings.NewReader(metricsPage))
	if want := (ObjectRequests{Puts: 13, PutBytes: 104857600, Others: 5}); got == nil || *got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	if got := parseObjectRequests(strings.NewReader("go_goroutines 8\n")); got != nil {
		t.Errorf("a page without the counters gave %+v", got)
	}
}

func TestReadObjectRequests(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(metricsPage))
	}))
	t.Cleanup(server.Close)
	for url, want := range map[string]bool{"": false, server.URL + "/metrics": true, server.URL + "/other": false, "http://127.0.0.1:0/": false} {
		if got := ReadObjectRequests(t.Context(), url); (got != nil) != want {
			t.Errorf("%q: %+v", url, got)
		}
	}
	if v, err := ReadMetric(t.Context(), server.URL+"/metrics", "go_goroutines"); err != nil || v != 8 {
		t.Errorf("read %v, %v, want 8", v, err)
	}
	for url, name := range map[string]string{server.URL + "/metrics": metricRequests, server.URL + "/other": "go_goroutines", "http://127.0.0.1:0/": "go_goroutines"} {
		if v, err := ReadMetric(t.Context(), url, name); err == nil {
			t.Errorf("%s of %s: %v, want an error", name, url, v)
		}
	}
	delta := ObjectRequests{Puts: 5, PutBytes: 80, Others: 7}.Minus(ObjectRequests{Puts: 2, PutBytes: 30, Others: 7})
	if want := (ObjectRequests{Puts: 3, PutBytes: 50}); delta != want {
		t.Errorf("difference %+v, want %+v", delta, want)
	}
}
