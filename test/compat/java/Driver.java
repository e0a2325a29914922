import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeSet;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.OffsetAndTimestamp;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** The compatibility driver of Apache Kafka's Java clients. Package compat says what each verb must do. */
public final class Driver {
    private static final long LIMIT_MILLIS = 60_000;
    private static final String RETENTION = "retention.ms";

    private final Map<String, String> flags = new HashMap<>();
    private final PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    private final long deadline = System.currentTimeMillis() + LIMIT_MILLIS;

    public static void main(String[] args) throws Exception {
        Driver driver = new Driver();
        for (int i = 1; i < args.length; i += 2) {
            driver.flags.put(args[i], args[i + 1]);
        }
        switch (args[0]) {
            case "produce" -> driver.produce();
            case "consume" -> driver.consume();
            case "resume" -> driver.resume();
            case "member" -> driver.member();
            case "seek" -> driver.seek();
            case "admin" -> driver.admin();
            case "transact" -> new Transactions(driver.flags, driver.out).transact();
            case "copy" -> new Transactions(driver.flags, driver.out).copy(driver.consumer());
            default -> throw new IllegalArgumentException("unknown verb " + args[0]);
        }
    }

    private String flag(String name) {
        return flags.get("--" + name);
    }

    private int max() {
        return Integer.parseInt(flag("max"));
    }

    private void produce() throws Exception {
        Properties config = new Properties();
        config.put("bootstrap.servers", flag("bootstrap"));
        config.put("compression.type", flag("codec"));
        config.put("enable.idempotence", flags.getOrDefault("--idempotent", "false"));
        config.put("linger.ms", "20");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        try (KafkaProducer<String, String> producer = new KafkaProducer<>(config, new StringSerializer(), new StringSerializer())) {
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                String[] record = line.split("\t", 2);
                sent.add(producer.send(new ProducerRecord<>(flag("topic"), record[0], record[1])));
            }
            for (Future<RecordMetadata> each : sent) {
                each.get();
            }
        }
    }

    private KafkaConsumer<String, String> consumer() {
        Properties config = new Properties();
        config.put("bootstrap.servers", flag("bootstrap"));
        config.put("auto.offset.reset", "earliest");
        config.put("enable.auto.commit", "false");
        config.put("isolation.level", flags.getOrDefault("--isolation", "read_uncommitted"));
        if (flag("group") != null) {
            config.put("group.id", flag("group"));
            config.put("session.timeout.ms", flags.getOrDefault("--session", "10000"));
            config.put("heartbeat.interval.ms", "500");
        }
        if (flag("max") != null) {
            config.put("max.poll.records", flag("max"));
        }
        return new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer());
    }

    static void show(PrintStream out, ConsumerRecord<String, String> record) {
        out.printf("record\t%d\t%d\t%s\t%s%n", record.partition(), record.offset(), record.key(), record.value());
    }

    /** Prints max records and returns the offset after the last one of each partition. */
    private Map<TopicPartition, OffsetAndMetadata> poll(KafkaConsumer<String, String> consumer) {
        Map<TopicPartition, OffsetAndMetadata> next = new HashMap<>();
        int seen = 0;
        while (seen < max()) {
            if (System.currentTimeMillis() > deadline) {
                throw new IllegalStateException("saw " + seen + " of " + max() + " records in time");
            }
            for (ConsumerRecord<String, String> record : consumer.poll(Duration.ofMillis(200))) {
                if (seen < max()) {
                    show(out, record);
                    seen++;
                    next.put(new TopicPartition(record.topic(), record.partition()), new OffsetAndMetadata(record.offset() + 1));
                }
            }
        }
        return next;
    }

    private void consume() {
        try (KafkaConsumer<String, String> consumer = consumer()) {
            List<TopicPartition> partitions = new ArrayList<>();
            for (String topic : flag("topic").split(",")) {
                partitions.add(new TopicPartition(topic, 0));
            }
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            poll(consumer);
        }
    }

    private void resume() {
        try (KafkaConsumer<String, String> consumer = consumer()) {
            consumer.subscribe(List.of(flag("topic")));
            consumer.commitSync(poll(consumer));
        }
    }

    private void seek() {
        try (KafkaConsumer<String, String> consumer = consumer()) {
            TopicPartition partition = new TopicPartition(flag("topic"), 0);
            consumer.assign(List.of(partition));
            OffsetAndTimestamp found = consumer.offsetsForTimes(Map.of(partition, Long.parseLong(flag("timestamp")))).get(partition);
            if (found == null) {
                throw new IllegalStateException("no offset at " + flag("timestamp"));
            }
            consumer.seek(partition, found.offset());
            poll(consumer);
        }
    }

    private void member() throws IOException {
        TreeSet<Integer> own = new TreeSet<>();
        try (KafkaConsumer<String, String> consumer = consumer()) {
            consumer.subscribe(List.of(flag("topic")), new ConsumerRebalanceListener() {
                @Override
                public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
                    partitions.forEach(each -> own.add(each.partition()));
                    showAssigned();
                }

                @Override
                public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
                    partitions.forEach(each -> own.remove(each.partition()));
                    showAssigned();
                }

                private void showAssigned() {
                    out.println("assigned\t" + String.join(",", own.stream().map(String::valueOf).toList()));
                }
            });
            Thread end = endOfInput();
            while (end.isAlive()) {
                consumer.poll(Duration.ofMillis(100)).forEach(each -> show(out, each));
                consumer.commitSync();
            }
        }
    }

    /** A thread that lives until standard input ends. */
    static Thread endOfInput() {
        Thread thread = new Thread(() -> {
            try {
                System.in.transferTo(PrintStream.nullOutputStream());
            } catch (IOException e) {
                throw new IllegalStateException(e);
            }
        });
        thread.setDaemon(true);
        thread.start();
        return thread;
    }

    private interface Check {
        boolean done() throws Exception;
    }

    /** Waits for a change to show: Kafka's metadata follow an administrator a little later. */
    private void eventually(String what, Check check) throws Exception {
        while (!check.done()) {
            if (System.currentTimeMillis() > deadline) {
                throw new IllegalStateException(what + ": not in time");
            }
            Thread.sleep(50);
        }
    }

    private void admin() throws Exception {
        String topic = flag("topic");
        ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        Properties config = new Properties();
        config.put("bootstrap.servers", flag("bootstrap"));
        try (Admin admin = Admin.create(config)) {
            admin.createTopics(List.of(new NewTopic(topic, 2, (short) -1).configs(Map.of(RETENTION, "3600000")))).all().get();
            out.println("created");
            awaitPartitions(admin, topic, 2);
            awaitRetention(admin, resource, "3600000");
            admin.incrementalAlterConfigs(Map.of(resource, List.of(
                new AlterConfigOp(new ConfigEntry(RETENTION, "7200000"), AlterConfigOp.OpType.SET)))).all().get();
            awaitRetention(admin, resource, "7200000");
            admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(4))).all().get();
            awaitPartitions(admin, topic, 4);
            admin.deleteTopics(List.of(topic)).all().get();
            eventually("describe after delete", () -> partitions(admin, topic) == 0);
            out.println("deleted");
        }
    }

    private void awaitPartitions(Admin admin, String topic, int want) throws Exception {
        eventually("describe", () -> partitions(admin, topic) == want);
        out.println("partitions " + want);
    }

    private void awaitRetention(Admin admin, ConfigResource resource, String want) throws Exception {
        eventually("describe config", () ->
            admin.describeConfigs(List.of(resource)).all().get().get(resource).get(RETENTION).value().equals(want));
        out.println(RETENTION + " " + want);
    }

    /** The number of a topic's partitions; 0 if there is no such topic. */
    private static int partitions(Admin admin, String topic) throws Exception {
        try {
            return admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().size();
        } catch (ExecutionException e) {
            if (e.getCause() instanceof UnknownTopicOrPartitionException) {
                return 0;
            }
            throw e;
        }
    }
}
