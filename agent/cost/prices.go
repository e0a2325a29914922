package cost

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"github.com/goccy/go-yaml"
)

// Prices are what a bucket's provider asks, in any currency. Varve has none built in: they differ by provider, region, storage class and contract, and change. The file deploy/prices.yaml is one to fill in.
type Prices struct {
	Currency string `yaml:"currency" json:"currency"`
	Source   string `yaml:"source" json:"source"` // whose list, of which day; printed with the figures

	StoredGiBMonth float64 `yaml:"stored-gib-month" json:"stored_gib_month"`
	Put            float64 `yaml:"put-1000" json:"put_1000"` // of a thousand requests
	Get            float64 `yaml:"get-1000" json:"get_1000"`
	Head           float64 `yaml:"head-1000" json:"head_1000"`
	List           float64 `yaml:"list-1000" json:"list_1000"`
	Delete         float64 `yaml:"delete-1000" json:"delete_1000"`
	PutGiB         float64 `yaml:"put-gib" json:"put_gib"` // of moving a GiB to the bucket, beside the requests
	GetGiB         float64 `yaml:"get-gib" json:"get_gib"` // of moving a GiB from it
}

// pricesBytesMax bounds a file of prices.
const pricesBytesMax = 64 << 10

const gib = 1 << 30

// ParsePrices reads prices from YAML, or from JSON, which is YAML too. All have to be there, 0 for what is free: one that was forgotten would make everything look cheaper than it is.
func ParsePrices(content []byte) (*Prices, error) {
	if len(content) > pricesBytesMax {
		return nil, fmt.Errorf("%d bytes, want %d at most", len(content), pricesBytesMax)
	}
	var given map[string]any
	if err := yaml.Unmarshal(content, &given); err != nil {
		return nil, errors.New("want one mapping of names to values, as in deploy/prices.yaml")
	}
	for _, name := range []string{"currency", "source", "stored-gib-month", "put-1000", "get-1000", "head-1000", "list-1000", "delete-1000", "put-gib", "get-gib"} {
		if given[name] == nil {
			return nil, fmt.Errorf("no %s", name)
		}
	}
	p := new(Prices)
	if err := yaml.NewDecoder(bytes.NewReader(content), yaml.DisallowUnknownField()).Decode(p); err != nil {
		return nil, err
	}
	for _, price := range []float64{p.StoredGiBMonth, p.Put, p.Get, p.Head, p.List, p.Delete, p.PutGiB, p.GetGiB} {
		if price < 0 || math.IsInf(price, 0) || math.IsNaN(price) {
			return nil, fmt.Errorf("a price of %v, want 0 or more", price)
		}
	}
	return p, nil
}

// keeping is what it costs to keep bytes for a month.
func (p *Prices) keeping(bytes int64) float64 { return float64(bytes) / gib * p.StoredGiBMonth }

// moving is what requests and the bytes that they move cost.
func (p *Prices) moving(r requests) float64 {
	calls := r.put*p.Put + r.get*p.Get + r.head*p.Head + r.list*p.List + r.del*p.Delete
	return calls/1000 + r.putBytes/gib*p.PutGiB + r.getBytes/gib*p.GetGiB
}

func (r requests) rounded() Requests {
	round := func(f float64) int64 { return int64(math.Round(f)) }
	return Requests{Put: round(r.put), Get: round(r.get), Head: round(r.head), List: round(r.list), Delete: round(r.del)}
}
