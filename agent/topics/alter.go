package topics

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// alteration is what a request wants of one resource.
type alteration struct {
	kind kmsg.ConfigResourceType
	name string
	// changes are the configurations that it names, in its order.
	changes []change
	// replace drops whatever it does not name.
	replace bool
}

// change is what a request wants of one configuration.
type change struct {
	name  string
	op    kmsg.IncrementalAlterConfigOp
	value *string
}

// AlterConfigs serves AlterConfigs, versions 0 to 2: a topic has what the request names, and nothing else. Errors are those of ConfigAdminManager
// and ConfigurationControlManager; only topics can be altered.
func (t *Topics) AlterConfigs(ctx context.Context, req *kmsg.AlterConfigsRequest) *kmsg.AlterConfigsResponse {
	asked := make([]alteration, len(req.Resources))
	for i := range req.Resources {
		r := &req.Resources[i]
		asked[i] = alteration{kind: r.ResourceType, name: r.ResourceName, replace: true}
		for _, c := range r.Configs {
			asked[i].changes = append(asked[i].changes, change{c.Name, kmsg.IncrementalAlterConfigOpSet, c.Value})
		}
	}
	resp := req.ResponseKind().(*kmsg.AlterConfigsResponse)
	for i, err := range t.alterAll(ctx, asked, req.ValidateOnly) {
		out := kmsg.NewAlterConfigsResponseResource()
		out.ResourceType, out.ResourceName = asked[i].kind, asked[i].name
		out.ErrorCode, out.ErrorMessage = answer(err)
		resp.Resources = append(resp.Resources, out)
	}
	return resp
}

// IncrementalAlterConfigs serves IncrementalAlterConfigs, versions 0 and 1 (KIP-339). Errors are as of [Topics.AlterConfigs].
func (t *Topics) IncrementalAlterConfigs(ctx context.Context, req *kmsg.IncrementalAlterConfigsRequest) *kmsg.IncrementalAlterConfigsResponse {
	asked := make([]alteration, len(req.Resources))
	for i := range req.Resources {
		r := &req.Resources[i]
		asked[i] = alteration{kind: r.ResourceType, name: r.ResourceName}
		for _, c := range r.Configs {
			asked[i].changes = append(asked[i].changes, change{c.Name, c.Op, c.Value})
		}
	}
	resp := req.ResponseKind().(*kmsg.IncrementalAlterConfigsResponse)
	for i, err := range t.alterAll(ctx, asked, req.ValidateOnly) {
		out := kmsg.NewIncrementalAlterConfigsResponseResource()
		out.ResourceType, out.ResourceName = asked[i].kind, asked[i].name
		out.ErrorCode, out.ErrorMessage = answer(err)
		resp.Resources = append(resp.Resources, out)
	}
	return resp
}

// alterAll alters resources, each of which may be named once, and returns an error or nil for each.
func (t *Topics) alterAll(ctx context.Context, asked []alteration, validateOnly bool) []error {
	ctx, cancel := deadline(ctx, 0)
	defer cancel()
	type resource struct {
		kind kmsg.ConfigResourceType
		name string
	}
	named := make(map[resource]int, len(asked))
	for _, a := range asked {
		named[resource{a.kind, a.name}]++
	}
	errs := make([]error, len(asked))
	concurrently(len(asked), func(i int) {
		a := &asked[i]
		if named[resource{a.kind, a.name}] > 1 {
			errs[i] = protocol.InvalidRequest.Errorf("Each resource must appear at most once.")
			return
		}
		if errs[i] = a.check(); errs[i] != nil {
			return
		}
		switch a.kind {
		case kmsg.ConfigResourceTypeTopic:
			errs[i] = t.alterTopic(ctx, a, validateOnly)
		case kmsg.ConfigResourceTypeBroker:
			errs[i] = t.alterBroker(a)
		case kmsg.ConfigResourceTypeBrokerLogger:
			errs[i] = a.refuse("Levels of loggers cannot be changed.")
		case kmsg.ConfigResourceTypeClientMetrics:
			errs[i] = a.refuse("Subscriptions to client metrics are not supported.")
		case kmsg.ConfigResourceTypeGroupConfig:
			errs[i] = a.refuse("Configurations of groups cannot be changed.")
		default:
			errs[i] = protocol.InvalidRequest.Errorf("Unknown resource type %d", a.kind)
		}
	})
	return errs
}

// check finds what is wrong with a request for any resource.
func (a *alteration) check() error {
	seen := make(map[string]bool, len(a.changes))
	var null []string
	for _, c := range a.changes {
		if seen[c.name] {
			return protocol.InvalidRequest.Errorf("Error due to duplicate config keys")
		}
		seen[c.name] = true
		if c.op < kmsg.IncrementalAlterConfigOpSet || c.op > kmsg.IncrementalAlterConfigOpSubtract {
			return protocol.InvalidRequest.Errorf("Unknown operations type %d", c.op)
		}
		if c.value == nil && c.op != kmsg.IncrementalAlterConfigOpDelete {
			null = append(null, c.name)
		}
	}
	if len(null) > 0 {
		return protocol.InvalidRequest.Errorf("Null value not supported for : %s", strings.Join(null, ", "))
	}
	return nil
}

// sets returns the names that the request gives a value, rather than only drops it.
func (a *alteration) sets() []string {
	var names []string
	for _, c := range a.changes {
		if c.op != kmsg.IncrementalAlterConfigOpDelete {
			names = append(names, c.name)
		}
	}
	return names
}

// refuse is the answer for resources that have no dynamic configuration here. Dropping what was never set works.
func (a *alteration) refuse(why string) error {
	if len(a.sets()) == 0 {
		return nil
	}
	return protocol.InvalidRequest.Errorf("%s", why)
}

// alterBroker refuses to set anything, as Kafka does for what it calls read-only.
func (t *Topics) alterBroker(a *alteration) error {
	if a.name != "" {
		if err := t.checkNode(a.name); err != nil {
			return err
		}
	}
	return a.refuse("Cannot update these configs dynamically: " + strings.Join(a.sets(), ", "))
}

// alterTopic alters the configurations of a topic and returns once this agent's view shows them.
func (t *Topics) alterTopic(ctx context.Context, a *alteration, validateOnly bool) error {
	if a.name == "" {
		return protocol.InvalidRequest.Errorf("Default topic resources are not allowed.")
	}
	if err := protocol.ValidateTopicName(a.name); err != nil {
		return err
	}
	edit := func(now coordinator.Topic, _ bool) (coordinator.Topic, error) {
		configs, err := a.apply(now.Configs)
		now.Configs = configs
		return now, err
	}
	if validateOnly {
		now, _, err := t.find(ctx, a.name)
		if err == nil {
			_, err = edit(now, false)
		}
		return err
	}
	revision, err := t.change(ctx, a.name, edit)
	if err != nil {
		return err
	}
	t.deps.Log.Info("topic configured", "topic", a.name, "set", a.sets())
	return t.seen(ctx, revision)
}

// apply returns the configurations that the request makes of a topic's. Applied to its own result it changes nothing.
func (a *alteration) apply(now map[string]string) (map[string]string, error) {
	next := make(map[string]string, len(now)+len(a.changes))
	if !a.replace {
		maps.Copy(next, now)
	}
	for _, c := range a.changes {
		switch c.op {
		case kmsg.IncrementalAlterConfigOpSet:
			next[c.name] = *c.value
		case kmsg.IncrementalAlterConfigOpDelete:
			delete(next, c.name)
		case kmsg.IncrementalAlterConfigOpAppend, kmsg.IncrementalAlterConfigOpSubtract:
			i, ok := definitionIndex[c.name]
			if !ok || definitions[i].kind != list {
				return nil, protocol.InvalidConfig.Errorf("Can't %v to key %s because its type is not LIST.", c.op, c.name)
			}
			next[c.name] = edited(effective(now, c.name), c.op, *c.value)
		}
	}
	return validate(next)
}

// edited adds items to a list, or takes them away.
func edited(value string, op kmsg.IncrementalAlterConfigOp, items string) string {
	parts := splitList(value)
	for _, item := range splitList(items) {
		at := slices.Index(parts, item)
		switch {
		case op == kmsg.IncrementalAlterConfigOpAppend && at < 0:
			parts = append(parts, item)
		case op == kmsg.IncrementalAlterConfigOpSubtract && at >= 0:
			parts = slices.Delete(parts, at, at+1)
		}
	}
	return strings.Join(parts, ",")
}
